"""An average of any width, made after training from snapshots of a few (Karras et al., 2024).

arXiv 2312.02696, section 3.2 and appendix C: a power-function profile is approximated by a linear
combination of the profiles of the snapshots; the same combination of their weights is the average.

A snapshot is one safetensors file, RUN/ema/images-….safetensors: the weights of every tracked
average as '<width>/<name>'; the images are those that the averages have seen, in the last phase.
Weights are float16, half as much disk at a relative error of 2^-11, far below the difference
between two widths; a tensor that float16 cannot hold stays float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from latentddm.engine.atomic_io import remove_leftovers, write_bytes
from latentddm.engine.checkpoint import Checkpoint, load_weights, newest_checkpoint
from latentddm.engine.distributed import full_tensor
from latentddm.engine.ema import (
    LARGEST_STD,
    SMALLEST_STD,
    Averages,
    average_names,
    power_exponent,
)
from latentddm.engine.errors import JobError, UserError
from latentddm.engine.run import RunFolder

LARGEST_ERROR = 0.05  # of the fitted profile, relative, in the L2 norm
RELATIVE_CUTOFF = 1e-9  # of singular values: below it coefficients amplify the float16 rounding
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


@dataclass(frozen=True)
class Profile:
    """The weights of an average over time u: (gamma + 1) u^gamma / images^(gamma + 1)."""

    images: float
    gamma: float


def profile_product(first: Profile, second: Profile) -> float:
    """The inner product of two profiles over time.

    (a + 1) (b + 1) / (a + b + 1) (s / t)^b / t, for exponents a, b ending at s <= t.
    """
    early, late = sorted((first, second), key=lambda profile: profile.images)
    a, b = early.gamma, late.gamma
    return (a + 1) * (b + 1) / (a + b + 1) * (early.images / late.images) ** b / late.images


def fit_profile(profiles: Sequence[Profile], target: Profile) -> tuple[np.ndarray, float]:
    """Least-squares coefficients of `profiles` for `target`, and the relative error of the fit.

    Solves the normal equations A x = b, A_ij = <p_i, p_j>, b_i = <p_i, target>, in float64.
    """
    products = np.array([[profile_product(p, q) for q in profiles] for p in profiles])
    right = np.array([profile_product(p, target) for p in profiles])
    scale = 1 / np.sqrt(np.diag(products))  # of equal norm: the system is better conditioned
    scaled = products * scale[:, None] * scale[None]
    solution = scale * np.linalg.lstsq(scaled, right * scale, rcond=RELATIVE_CUTOFF)[0]
    norm = profile_product(target, target)
    left = norm - 2 * right @ solution + solution @ products @ solution
    return solution, float(np.sqrt(max(left, 0) / norm))


def reconstruct(run: RunFolder, width: float, output: Path | None = None) -> tuple[Path, float]:
    """Write the average of `width` at the last snapshot; returns the file and the fit's error.

    The file is RUN/ema/width-….safetensors unless `output` is given, and holds every tensor of
    the network. UserError if the snapshots are too few for this width.
    """
    if not SMALLEST_STD <= width <= LARGEST_STD:
        raise UserError(f"The width must lie in [{SMALLEST_STD}, {LARGEST_STD}], not {width:g}.")
    snapshots = [Snapshot(run.averages, images) for images in snapshot_positions(run.averages)]
    checkpoint = newest_checkpoint(run.checkpoints)
    if not snapshots or checkpoint is None:
        raise UserError(
            f"{run.path} holds no snapshots of its averages; train with ema.snapshots above 0."
        )
    sources = [(snapshot, w) for snapshot in snapshots for w in snapshot.widths]
    profiles = [Profile(snapshot.images, power_exponent(w)) for snapshot, w in sources]
    target = Profile(snapshots[-1].images, power_exponent(width))
    coefficients, error = fit_profile(profiles, target)
    if error > LARGEST_ERROR:
        raise UserError(
            f"The {len(snapshots)} snapshots of {run.path} give width {width:g} with an error of "
            f"{error:.0%} only; choose a width nearer to those tracked, or train with "
            "more ema.snapshots."
        )
    tensors = {
        name: _combine(name, tensor, sources, coefficients)
        for name, tensor in checkpoint.tensors("ema").items()
    }
    path = output if output is not None else reconstructed_path(run, width)
    write_bytes(path, save(tensors, {"width": f"{width:g}", "images": str(target.images)}))
    return path, error


def reconstructed_path(run: RunFolder, width: float) -> Path:
    """Where `reconstruct` writes an average by default."""
    return run.averages / f"width-{width:g}.safetensors"


def load_average(
    run: RunFolder, checkpoint: Checkpoint, choice: str | None, module: nn.Module
) -> None:
    """Load an average of a run into `module`.

    choice: a width that was tracked or has been reconstructed, a file, or None for the first of
    those tracked. UserError if there is none such.
    """
    if choice is None:
        checkpoint.load_module("ema", module)
    elif Path(choice).is_file():
        load_weights(Path(choice), module)
    else:
        load_weights(_file_of_width(run, checkpoint, choice), module)


def _file_of_width(run: RunFolder, checkpoint: Checkpoint, choice: str) -> Path:
    try:
        width = float(choice)
    except ValueError:
        raise UserError(f"{choice} is neither a file nor the width of an average.") from None
    tracked = checkpoint.config.get("ema", {}).get("widths", [])
    names = average_names(tracked)
    if width in names:
        return checkpoint.path / f"{names[width]}.safetensors"
    path = reconstructed_path(run, width)
    if not path.is_file():
        raise UserError(
            f"{run.path} has no average of width {width:g} (tracked: "
            f"{', '.join(f'{value:g}' for value in tracked)}); make it first with "
            f"`latentddm ema {run.path} --width {width:g}`."
        )
    return path


def _combine(
    name: str, tensor: Tensor, sources: Sequence[tuple[Snapshot, float]], coefficients: np.ndarray
) -> Tensor:
    """One tensor of the average; what the snapshots lack is a buffer, the same at all times."""
    if not sources[0][0].holds(name):
        return tensor
    total = torch.zeros_like(tensor, dtype=torch.float64)
    for (snapshot, width), coefficient in zip(sources, coefficients, strict=True):
        total += coefficient * snapshot.tensor(width, name)
    return total.to(tensor.dtype)
