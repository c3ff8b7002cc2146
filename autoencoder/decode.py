"""Raw latents to pictures: in memory, and the stage behind `latentddm decode`."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from autoencoder.image_io import PICTURE_OPTIONS, picture_bytes
from autoencoder.latent_files import Latents, open_latents
from autoencoder.models import Autoencoder
from autoencoder.tiling import decode_tiled
from latentddm.engine.atomic_io import (
    TEMPORARY_SUFFIX,
    atomic_path,
    read_json,
    remove_leftovers,
    write_bytes,
    write_json,
)
from latentddm.engine.errors import UserError
from latentddm.engine.progress import Progress

FORMATS = (*PICTURE_OPTIONS, "webdataset")
PLAN_NAME = "decode.json"
SHARD_IMAGES = 1000
WRITING_THREADS = 4
IMAGES_AT_ONCE = 16  # maps of more leave a processor's caches, which costs up to half


def decode_latents(
    latents: torch.Tensor,
    autoencoder: Autoencoder,
    batch_size: int = IMAGES_AT_ONCE,
    tile: int | None = None,
) -> torch.Tensor:
    """Raw latents [N,C,h,w] -> pixels uint8 [N,H,W,3] on the CPU, `batch_size` at a time.

    tile: decode pictures with more latents a side than this from overlapping tiles of that many,
    so that large ones fit in little memory.
    """
    if batch_size < 1:
        raise UserError(f"The batch size must be at least 1, not {batch_size}.")
    if tile is not None and max(latents.shape[2:]) <= tile:
        tile = None
    batches = latents.split(batch_size)
    if tile is not None:
        return torch.cat([decode_tiled(batch, autoencoder, tile) for batch in batches])
    return torch.cat([autoencoder.decode(batch).cpu() for batch in batches])


def decode_files(
    latents_reference: str | Path,
    output: Path,
    autoencoder: Autoencoder,
    *,
    format: str = "png",
    batch_size: int = IMAGES_AT_ONCE,
    tile: int | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> int:
    """Decode a file of raw latents, or a latent store, into `output`; return how many are new.

    format: png or webp (both lossless) or jpeg (quality 95), one file an image, 000000.png and so
    on; or webdataset, tar shards of 1,000 png images. Files are whole or absent; run again, it
    makes those that are missing, the same to the byte. `world_size` processes share the work.
    UserError if the folder holds anything else, or what other latents or settings gave.
    """
    latents = open_latents(latents_reference)
    if format not in FORMATS:
        raise UserError(f"The format must be one of {', '.join(FORMATS)}, not {format}.")
    if batch_size < 1 or not 0 <= rank < world_size:
        raise UserError(
            f"batch_size {batch_size} must be at least 1, and rank {rank} of 0 to {world_size - 1}."
        )
    check_fingerprint(latents, autoencoder)
    output = Path(output)
    _prepare_folder(output, _plan(latents, autoencoder, format, batch_size, tile))
    unit = SHARD_IMAGES if format == "webdataset" else batch_size
    starts = range(rank * unit, len(latents), world_size * unit)
    work = [range(start, min(start + unit, len(latents))) for start in starts]
    job = _Job(latents, output, autoencoder, format, batch_size, tile)
    remove_leftovers(output, [name for indices in work for name in job.names(indices)])
    made = 0
    with Progress(sum(map(len, work)), "decode", show=rank == 0) as progress:
        for indices in work:
            made += job.make(indices)
            progress.update(len(indices))
    return made


def check_fingerprint(latents: Latents, autoencoder: Autoencoder) -> None:
    """UserError if the latents say that they belong to another autoencoder."""
    if latents.fingerprint not in (None, autoencoder.fingerprint):
        raise UserError(
            f"The latents in {latents.name} belong to the autoencoder {latents.fingerprint}, and "
            f"{autoencoder.reference} is {autoencoder.fingerprint}; use the one they belong to."
        )


@dataclass(frozen=True)
class _Job:
    """Makes the files of one run of indices; what it makes depends on the indices alone."""

    latents: Latents
    output: Path
    autoencoder: Autoencoder
    format: str
    batch_size: int
    tile: int | None

    def names(self, indices: range) -> list[str]:
        """The files that the images of `indices` go to."""
        if self.format == "webdataset":
            return [f"images-{indices.start // SHARD_IMAGES:06d}.tar"]
        suffix = {"jpeg": "jpg"}.get(self.format, self.format)
        return [f"{index:06d}.{suffix}" for index in indices]

    def make(self, indices: range) -> int:
        """Write what is missing of the files of `indices`; return the number of new images."""
        missing = [name for name in self.names(indices) if not (self.output / name).exists()]
        if not missing:
            return 0
        if self.format == "webdataset":
            self._write_shard(self.output / missing[0], indices)
            return len(indices)
        # The whole batch is decoded for any file of it: a batch of another size could round
        # differently, and a file must not depend on what was there before.
        (pixels,) = self._decoded(indices)
        wanted = [
            (self.output / name, picture)
            for name, picture in zip(self.names(indices), pixels, strict=True)
            if name in missing
        ]
        with ThreadPoolExecutor(WRITING_THREADS) as pool:
            list(
                pool.map(
                    lambda item: write_bytes(item[0], picture_bytes(item[1], self.format)), wanted
                )
            )
        return len(wanted)

    def _decoded(self, indices: range) -> Iterator[np.ndarray]:
        """Pixels uint8 [b,H,W,3] of one batch after the other."""
        for start in range(indices.start, indices.stop, self.batch_size):
            batch = self.latents.read(start, min(start + self.batch_size, indices.stop))
            yield decode_latents(batch, self.autoencoder, self.batch_size, self.tile).numpy()

    def _write_shard(self, path: Path, indices: range) -> None:
        with (
            atomic_path(path) as temporary,
            tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar,
        ):
            pictures = (picture for batch in self._decoded(indices) for picture in batch)
            for index, picture in zip(indices, pictures, strict=True):
                data = picture_bytes(picture, "png")
                member = tarfile.TarInfo(f"{index:06d}.png")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def _plan(
    latents: Latents, autoencoder: Autoencoder, format: str, batch_size: int, tile: int | None
) -> dict[str, object]:
    """What decides every byte of the files, as far as it is a choice."""
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
    """Make `folder` the home of `plan`, or see that it is; UserError if it is another's."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; choose a folder for the images.")
    # Listed before the plan is looked for: another process writes the plan first, then images.
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
                f"{plan[key]}); choose another folder, or delete it."
            )
    elif others:
        raise UserError(f"{folder} holds {others[0]} and no {PLAN_NAME}; choose an empty folder.")
    else:
        write_json(path, plan)
