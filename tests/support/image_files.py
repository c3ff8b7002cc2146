"""Small image files in every kind of source."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from autoencoder.images import ImageSource, Preprocessing, read_pixels

NAMES = [f"image{number}.png" for number in (1, 2, 3, 10, 11, 20)]


def image_file(seed: int, size: tuple[int, int] = (24, 20)) -> bytes:
    """A PNG file of noise, `size` (width, height) pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def files(names: Sequence[str] = tuple(NAMES)) -> dict[str, bytes]:
    return {name: image_file(seed) for seed, name in enumerate(names)}


def write_folder(root: Path, content: Mapping[str, bytes]) -> Path:
    for name, data in content.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def write_zip(path: Path, content: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


def write_tar(path: Path, content: Mapping[str, bytes], kind: int = tarfile.USTAR_FORMAT) -> Path:
    with tarfile.open(path, "w", format=kind) as archive:
        for name, data in content.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def write_lmdb(folder: Path, values: Mapping[str, bytes]) -> Path:
    lmdb = pytest.importorskip("lmdb")
    with lmdb.open(str(folder), map_size=1 << 24) as database, database.begin(write=True) as writer:
        for key, data in values.items():
            writer.put(key.encode(), data)
    return folder


def keys(source: ImageSource) -> list[str]:
    return [source.key(index) for index in range(len(source))]


def labels(source: ImageSource) -> list[int | None]:
    return [source.label(index) for index in range(len(source))]


def pixels(source: ImageSource, size: int = 16) -> np.ndarray:
    array, unreadable = read_pixels(source, Preprocessing(size=size))
    assert unreadable == []
    return array
