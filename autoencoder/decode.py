"""Decoding of raw latents to images: in memory, and to files for `latentddm decode`."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from autoencoder.image_io import FORMAT_OPTIONS, image_bytes
from autoencoder.latent_files import Latents, open_latents
from autoencoder.models import Autoencoder
from autoencoder.remote import local_output
from autoencoder.tiling import check_tile, decode_tiled
from latentddm.engine.atomic_io import (
    TEMPORARY_SUFFIX,
    atomic_path,
    make_folder,
    read_json,
    remove_leftovers,
    write_bytes,
    write_json,
)
from latentddm.engine.errors import UserError
from latentddm.engine.progress import Progress

FORMATS = (*FORMAT_OPTIONS, "webdataset")
PLAN_NAME = "decode.json"
SHARD_IMAGES = 1000
WRITING_THREADS = 4
IMAGES_AT_ONCE = 16  # larger feature maps exceed a processor's caches, at up to half the speed


def decode_latents(
    latents: torch.Tensor,
    autoencoder: Autoencoder,
    batch_size: int = IMAGES_AT_ONCE,
    tile: int | None = None,
) -> torch.Tensor:
    """Raw latents [N,C,h,w] -> pixels uint8 [N,H,W,3] on the CPU, `batch_size` at a time.

    tile: latents a side of overlapping tiles, for images with more than this; bounds the memory.
    """
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; give 1 or more.")
    if tile is not None and max(latents.shape[2:]) <= tile:
        tile = None
    batches = latents.split(batch_size)
    if tile is not None:
        return torch.cat([decode_tiled(batch, autoencoder, tile) for batch in batches])
    return torch.cat([autoencoder.decode(batch).cpu() for batch in batches])


def decode_files(
    latents_reference: str | Path,
    output: str | Path,
    autoencoder: Autoencoder,
    *,
    format: str = "png",
    batch_size: int = IMAGES_AT_ONCE,
    tile: int | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> int:
    """Decode a file of raw latents, or a latent store, to images in `output`.

    Returns the number of new images. format: png or webp (both lossless) or jpeg (quality 95), one
    file per image from 000000.png on; or webdataset, tar shards of 1,000 png images. Files are
    written atomically; a second call writes the missing ones, equal byte for byte. The work is
    shared by `world_size` processes. UserError if the folder holds other files, or images of other
    latents or settings; for a wrong request the folder stays as it is.
    """
    output = local_output(output)
    latents = open_latents(latents_reference)
    if format not in FORMATS:
        raise UserError(f"The format {format} is unknown; use one of {', '.join(FORMATS)}.")
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; give 1 or more.")
    if not 0 <= rank < world_size:
        raise UserError(f"rank is {rank}; give 0 to {world_size - 1}, below world_size.")
    check_fingerprint(latents, autoencoder)
    _check_first(latents, autoencoder, tile)
    _prepare_folder(output, _plan(latents, autoencoder, format, batch_size, tile))
    unit = SHARD_IMAGES if format == "webdataset" else batch_size
    starts = range(rank * unit, len(latents), world_size * unit)
    work = [range(start, min(start + unit, len(latents))) for start in starts]
    job = _Job(latents, output, autoencoder, format, batch_size, tile)
    names = [name for indices in work for name in job.names(indices)]
    remove_leftovers(output, [PLAN_NAME, *names])
    written = 0
    with Progress(sum(map(len, work)), "decode", show=rank == 0) as progress:
        for indices in work:
            written += job.write(indices)
            progress.update(len(indices))
    return written


def check_fingerprint(latents: Latents, autoencoder: Autoencoder) -> None:
    """UserError if the latents carry the fingerprint of another autoencoder."""
    if latents.fingerprint not in (None, autoencoder.fingerprint):
        raise UserError(
            f"The latents in {latents.name} are those of the autoencoder {latents.fingerprint}, "
            f"but {autoencoder.reference} is {autoencoder.fingerprint}; give their own autoencoder."
        )


def _check_first(latents: Latents, autoencoder: Autoencoder, tile: int | None) -> None:
    """UserError if the first latents do not fit the autoencoder, or the tile does not fit both."""
    first = autoencoder.checked_latents(latents.read(0, 1))
    if tile is not None and max(first.shape[2:]) > tile:
        check_tile(autoencoder, tile)


@dataclass(frozen=True)
class _Job:
    """The files of one range of indices, a function of the indices alone."""

    latents: Latents
    output: Path
    autoencoder: Autoencoder
    format: str
    batch_size: int
    tile: int | None

    def names(self, indices: range) -> list[str]:
        """The files of the images of `indices`."""
        if self.format == "webdataset":
            return [f"images-{indices.start // SHARD_IMAGES:06d}.tar"]
        suffix = {"jpeg": "jpg"}.get(self.format, self.format)
        return [f"{index:06d}.{suffix}" for index in indices]

    def write(self, indices: range) -> int:
        """Write the missing files of `indices`; returns the number of new images."""
        missing = [name for name in self.names(indices) if not (self.output / name).exists()]
        if not missing:
            return 0
        if self.format == "webdataset":
            self._write_shard(self.output / missing[0], indices)
            return len(indices)
        # Always the whole batch: another batch size could round differently, and a file must not
        # depend on the files that exist already.
        (pixels,) = self._decoded(indices)
        images = dict(zip(self.names(indices), pixels, strict=True))

        def write(name: str) -> None:
            data = image_bytes(images[name], self.format)
            write_bytes(self.output / name, data)

        with ThreadPoolExecutor(WRITING_THREADS) as pool:
            list(pool.map(write, missing))
        return len(missing)

    def _decoded(self, indices: range) -> Iterator[np.ndarray]:
        """Pixels uint8 [b,H,W,3], batch by batch."""
        for start in range(indices.start, indices.stop, self.batch_size):
            batch = self.latents.read(start, min(start + self.batch_size, indices.stop))
            yield decode_latents(batch, self.autoencoder, self.batch_size, self.tile).numpy()

    def _write_shard(self, path: Path, indices: range) -> None:
        with (
            atomic_path(path) as temporary,
            tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar,
        ):
            images = (image for batch in self._decoded(indices) for image in batch)
            for index, image in zip(indices, images, strict=True):
                data = image_bytes(image, "png")
                member = tarfile.TarInfo(f"{index:06d}.png")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def _plan(
    latents: Latents, autoencoder: Autoencoder, format: str, batch_size: int, tile: int | None
) -> dict[str, object]:
    """All choices on which the bytes of the files depend."""
    return {
        "latents": latents.identity,
        "images": len(latents),
        "autoencoder": autoencoder.fingerprint,
        "dtype": str(autoencoder.dtype).removeprefix("torch."),
        "format": format,
        "batch_size": batch_size,
        "tile": tile,
    }


def _prepare_folder(folder: Path, plan: dict[str, object]) -> None:
    """Write `plan` into an empty folder; UserError for a folder of another plan or other files."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; give a folder for the images.")
    # Listed before the plan is read: another process writes first the plan, then images.
    others = sorted(
        path.name
        for path in (folder.iterdir() if folder.exists() else ())
        if not path.name.endswith(TEMPORARY_SUFFIX)
    )
    path = folder / PLAN_NAME
    if path.exists():
        found = read_json(path)
        differing = [key for key in plan if found.get(key) != plan[key]]
        if differing:
            key = differing[0]
            raise UserError(
                f"{folder} holds images of another decoding ({key} {found.get(key)}, now "
                f"{plan[key]}); give another folder, or delete this one."
            )
    elif others:
        raise UserError(f"{folder} holds {others[0]} and no {PLAN_NAME}; give an empty folder.")
    else:
        make_folder(folder)
        write_json(path, plan)
