"""Preprocessed images in webdataset tar shards, a source for `encode` and for other programs."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from webdataset import TarWriter

from autoencoder.loading import LoadedPixels, iterate_pixels
from autoencoder.preprocessing import Preprocessing
from autoencoder.sources.formats import is_image
from autoencoder.sources.protocol import ImageSource, UnreadableImage
from latentddm.engine.atomic_io import (
    TEMPORARY_SUFFIX,
    atomic_path,
    make_folder,
    read_json,
    write_json,
)
from latentddm.engine.errors import UserError
from latentddm.engine.progress import Progress

RECORD = "prepared.json"
FORMATS: dict[str, dict[str, Any]] = {
    "png": {"format": "PNG"},
    "jpg": {"format": "JPEG", "quality": 95, "subsampling": 0},
}


@dataclass(frozen=True, kw_only=True)
class ShardLayout:
    """Format and size of the shards: png (lossless) or jpg (quality 95) members."""

    file_format: str = "png"
    images_per_shard: int = 5000

    def __post_init__(self) -> None:
        if self.file_format not in FORMATS:
            raise UserError(
                f"The format {self.file_format!r} is unknown; use one of {', '.join(FORMATS)}."
            )
        if self.images_per_shard < 1:
            raise UserError(
                f"images_per_shard is {self.images_per_shard}; a shard holds at least one image."
            )


@dataclass
class PreparedShards:
    """Contents of a folder of prepared shards, the record in its prepared.json."""

    settings: dict[str, Any]
    shards: list[dict[str, Any]] = field(default_factory=list)

    @property
    def images(self) -> int:
        return sum(shard["images"] for shard in self.shards)

    @property
    def unreadable(self) -> list[UnreadableImage]:
        return [UnreadableImage(**entry) for shard in self.shards for entry in shard["unreadable"]]


def write_image_shards(
    source: ImageSource,
    output: Path,
    preprocessing: Preprocessing,
    layout: ShardLayout,
    workers: int = 0,
) -> PreparedShards:
    """Write all readable images of `source` into tar shards under `output`, each shard atomically.

    Samples keep the names of the images, labels become `cls` members. A second call after an
    interruption writes only the missing shards; the result is equal byte for byte.
    """
    names = _sample_names(source)
    settings = {
        "source": source.name,
        "images": len(source),
        "names": "sha256:" + hashlib.sha256("\n".join(names).encode()).hexdigest(),
        "preprocessing": preprocessing.describe(),
        "file_format": layout.file_format,
        "images_per_shard": layout.images_per_shard,
    }
    prepared = _continue_or_start(output, settings)
    starts = range(0, len(source), layout.images_per_shard)
    done = len(prepared.shards)
    with Progress(len(source), "prepare", done=min(len(source), done * starts.step)) as progress:
        for start in starts[done:]:
            indices = range(start, min(start + starts.step, len(source)))
            path = output / f"images-{len(prepared.shards):06d}.tar"
            items = _counted(iterate_pixels(source, indices, preprocessing, workers), progress)
            entry = _write_shard(path, items, lambda item: names[item.index], layout.file_format)
            prepared.shards.append(entry)
            write_json(output / RECORD, vars(prepared))
    return prepared


def _write_shard(
    path: Path,
    items: Iterator[LoadedPixels | UnreadableImage],
    name: Callable[[LoadedPixels], str],
    file_format: str,
) -> dict[str, Any]:
    images, unreadable = 0, []
    with (
        atomic_path(path) as temporary,
        open(temporary, "wb") as file,
        # a fixed time stamp, for equal bytes of equal images
        TarWriter(file, encoder=False, mtime=0) as writer,
    ):
        for item in items:
            if isinstance(item, UnreadableImage):
                unreadable.append({"key": item.key, "reason": item.reason})
                continue
            sample = {"__key__": name(item), file_format: _encode(item.pixels, file_format)}
            if item.label is not None:
                sample["cls"] = str(item.label).encode()
            writer.write(sample)
            images += 1
    return {"name": path.name, "images": images, "unreadable": unreadable}


def _encode(pixels: np.ndarray, file_format: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, **FORMATS[file_format])
    return buffer.getvalue()


def _counted(
    items: Iterator[LoadedPixels | UnreadableImage], progress: Progress
) -> Iterator[LoadedPixels | UnreadableImage]:
    for item in items:
        yield item
        progress.update(1)


def _continue_or_start(output: Path, settings: dict[str, Any]) -> PreparedShards:
    """The record of an earlier call under `output`, up to the first shard that is missing."""
    if output.exists() and not output.is_dir():
        raise UserError(f"{output} is a file; give a folder.")
    for kind in (RECORD, "images-*.tar"):  # temporary files of an earlier, killed run
        for abandoned in output.glob(f"{kind}.*{TEMPORARY_SUFFIX}"):
            abandoned.unlink()
    if not (output / RECORD).is_file():
        if output.is_dir() and any(output.iterdir()):
            raise UserError(f"{output} holds other files; give a new or an empty folder.")
        make_folder(output)
        write_json(output / RECORD, {"settings": settings, "shards": []})
        return PreparedShards(settings)
    record = read_json(output / RECORD)
    earlier = record.get("settings", {})
    changed = [name for name, value in settings.items() if earlier.get(name) != value]
    if changed:
        raise UserError(
            f"{output} was prepared with another {changed[0]} ({earlier.get(changed[0])}, now "
            f"{settings[changed[0]]}); give a new folder, or repeat the earlier settings."
        )
    shards = []
    for shard in record.get("shards", []):
        if not (output / shard["name"]).is_file():
            break
        shards.append(shard)
    return PreparedShards(settings, shards)


def _sample_names(source: ImageSource) -> list[str]:
    """One webdataset name per image: its key without suffix, `..`, or dots in the last part."""
    names: dict[str, str] = {}
    for index in range(len(source)):
        key = source.key(index)
        *folders, base = [part for part in key.split("/") if part not in ("", ".", "..")]
        stem = base.rpartition(".")[0] if is_image(base) else base
        name = "/".join([*folders, stem.replace(".", "_")])
        if name in names:
            raise UserError(
                f"{key} and {names[name]} in {source.name} have one name as samples; rename one."
            )
        names[name] = key
    return list(names)
