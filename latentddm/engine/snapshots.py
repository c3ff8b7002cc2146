"""Snapshots of the moving averages through training, from which other widths are made later.

A snapshot is one safetensors file, RUN/ema/images-….safetensors: the weights of every tracked
average as '<width>/<name>'. Weights are float16, half as much disk at a relative error of 2^-11,
far below what a width changes; a tensor that float16 cannot hold stays float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from latentddm.engine.atomic_io import remove_leftovers, write_bytes
from latentddm.engine.distributed import full_tensor
from latentddm.engine.ema import Averages
from latentddm.engine.errors import JobError

_PATTERN = "images-{:012d}.safetensors"


def gather_snapshot(averages: Averages) -> dict[str, Tensor]:
    """The averages' weights as they are written; every process must call it."""
    return {
        f"{average.std:g}/{name}": _small(full_tensor(parameter.detach()).cpu())
        for average in averages.tracked
        for name, parameter in average.module.named_parameters()
    }


def write_snapshot(folder: Path, images: int, tensors: dict[str, Tensor], keep: int) -> None:
    """Write a snapshot, then thin out the others until `keep` are left."""
    remove_leftovers(folder, ("images-",))
    write_bytes(folder / _PATTERN.format(images), save(tensors))
    for surplus in surplus_positions(snapshot_positions(folder), keep):
        (folder / _PATTERN.format(surplus)).unlink()


def snapshot_positions(folder: Path) -> list[int]:
    """The images seen at each snapshot, ascending."""
    found = folder.glob("images-*.safetensors")
    return sorted(int(path.stem.removeprefix("images-")) for path in found)


def surplus_positions(positions: Sequence[int], keep: int) -> list[int]:
    """Which of the ascending `positions` to drop so that `keep` are left, evenly spaced.

    A training that was made longer has more than it should: again and again the one goes whose
    neighbours are closest. The last stays.
    """
    kept, dropped = [0, *positions], []
    while len(kept) - 1 > keep and len(kept) > 2:
        inner = range(1, len(kept) - 1)
        dropped.append(kept.pop(min(inner, key=lambda at: kept[at + 1] - kept[at - 1])))
    return dropped


class Snapshot:
    """One snapshot on disk, read tensor by tensor."""

    def __init__(self, folder: Path, images: int) -> None:
        self.images = images
        self.path = folder / _PATTERN.format(images)
        try:
            self._file = safe_open(self.path, "pt")
        except (OSError, SafetensorError) as error:
            raise JobError(
                f"{self.path} cannot be read ({error}); delete it, the others go on without it."
            ) from error

        self._names = [key.split("/", 1) for key in self._file.keys()]  # noqa: SIM118

    @property
    def widths(self) -> list[float]:
        return sorted({float(width) for width, _ in self._names})

    def holds(self, name: str) -> bool:
        """Whether the snapshot has a parameter of this name."""
        return any(name == held for _, held in self._names)

    def tensor(self, width: float, name: str) -> Tensor:
        """The average of `width` of the parameter `name`, float64."""
        return self._file.get_tensor(f"{width:g}/{name}").double()


def _small(tensor: Tensor) -> Tensor:
    half = tensor.half()
    return half if torch.isfinite(half).all() else tensor
