"""The registry of image sources: one more source is one class and one line."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from image_files import pixels
from PIL import Image

from autoencoder.images import Preprocessing, open_source, read_pixels
from autoencoder.sources import registry
from autoencoder.sources.protocol import IndexedSource
from latentddm.engine.errors import UserError


class GradientSource(IndexedSource):
    """`gradient:COUNT`: grey ramps, a source that the library lacks."""

    def __init__(self, reference: str, size: int | None) -> None:
        count = int(reference.partition(":")[2])
        super().__init__(reference, [f"{index:03d}" for index in range(count)])
        self.size = size or 16

    def read(self, index: int) -> bytes:
        ramp = np.linspace(0, 10 * index, self.size).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(np.tile(ramp, (self.size, 1))).save(buffer, "PNG")
        return buffer.getvalue()


class RawSource(IndexedSource):
    """A .raw file of bytes [N,8,8], a kind of file that the library lacks."""

    def __init__(self, path: Path, name: str) -> None:
        self.values = np.fromfile(path, np.uint8).reshape(-1, 8, 8)
        super().__init__(name, [f"{index:03d}" for index in range(len(self.values))])

    def read(self, index: int) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(self.values[index]).save(buffer, "PNG")
        return buffer.getvalue()


def test_one_more_source_by_prefix_is_one_class_and_one_registry_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(UserError, match="gradient:12 does not exist"):
        open_source("gradient:12")
    monkeypatch.setitem(registry.PREFIXES, "gradient", GradientSource)

    source = open_source("gradient:12", size=32)
    assert (len(source), source.name) == (12, "gradient:12")
    array, unreadable = read_pixels(source, Preprocessing(size=32), workers=2)
    assert unreadable == []
    np.testing.assert_array_equal(array[:, 5, -1, 0], 10 * np.arange(12))


def test_one_more_source_by_path_is_one_class_and_one_registry_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.random.default_rng(0).integers(0, 256, (3, 8, 8), dtype=np.uint8)
    values.tofile(tmp_path / "images.raw")
    with pytest.raises(UserError, match=r"images\.raw is a file of an unknown type"):
        open_source(tmp_path / "images.raw")
    line = (lambda path: path.suffix == ".raw", RawSource)
    monkeypatch.setattr(registry, "PATHS", [*registry.PATHS, line])

    source = open_source(tmp_path / "images.raw")
    np.testing.assert_array_equal(pixels(source, size=8)[..., 0], values)
