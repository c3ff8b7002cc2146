"""Post-hoc EMA: an average of any width, reconstructed from snapshots of a few tracked ones.

Karras et al., arXiv 2312.02696, section 3.2 and appendix C: a power-function profile is
approximated by a linear combination of the profiles of the snapshots; the same combination of
their weights is the average.

A snapshot is one safetensors file, RUN/ema/images-….safetensors: the weights of every tracked
average as '<width>/<name>'; its images are counted in the last phase, as by the averages. Weights
are float16: half the disk space at a relative error of 2^-11, far below the difference between two
widths. A tensor out of float16's range stays float32.
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

from latentddm.engine.atomic_io import make_folder, remove_leftovers, write_bytes
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

LARGEST_ERROR = 0.05  # relative L2 error of the fitted profile
RELATIVE_CUTOFF = 1e-9  # of singular values; below it the float16 rounding is amplified
_PATTERN = "images-{:012d}.safetensors"


def gather_snapshot(averages: Averages) -> dict[str, Tensor]:
    """The tensors of a snapshot of the averages; collective: call it on every process."""
    return {
        f"{average.std:g}/{name}": _small(full_tensor(parameter.detach()).cpu())
        for average in averages.tracked
        for name, parameter in average.module.named_parameters()
    }


def write_snapshot(folder: Path, images: int, tensors: dict[str, Tensor], keep: int) -> None:
    """Write a snapshot, then remove surplus ones until `keep` are left."""
    remove_leftovers(folder, ("images-",))
    write_bytes(folder / _PATTERN.format(images), save(tensors))
    for surplus in surplus_positions(snapshot_positions(folder), keep):
        (folder / _PATTERN.format(surplus)).unlink()


def snapshot_positions(folder: Path) -> list[int]:
    """The images seen at each snapshot, ascending."""
    found = folder.glob("images-*.safetensors")
    return sorted(int(path.stem.removeprefix("images-")) for path in found)


def surplus_positions(positions: Sequence[int], keep: int) -> list[int]:
    """The surplus of the ascending `positions`: without it `keep` are left, evenly spaced.

    A training that was made longer has too many snapshots: the one whose neighbours are closest is
    dropped, again and again. The last one is never dropped.
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
                f"{self.path} cannot be read ({error}); delete it, the other snapshots remain."
            ) from error

        self._names = [key.split("/", 1) for key in self._file.keys()]  # noqa: SIM118

    @property
    def widths(self) -> list[float]:
        return sorted({float(width) for width, _ in self._names})

    def holds(self, name: str) -> bool:
        """Whether the snapshot has a parameter `name`."""
        return any(name == own for _, own in self._names)

    def tensor(self, width: float, name: str) -> Tensor:
        """The parameter `name` in the average of `width`, float64."""
        return self._file.get_tensor(f"{width:g}/{name}").double()


def _small(tensor: Tensor) -> Tensor:
    half = tensor.half()
    return half if torch.isfinite(half).all() else tensor


@dataclass(frozen=True)
class Profile:
    """Profile of an average over time u <= images: (gamma + 1) u^gamma / images^(gamma + 1)."""

    images: float
    gamma: float


def profile_product(first: Profile, second: Profile) -> float:
    """Inner product of two profiles over time.

    (a + 1) (b + 1) / (a + b + 1) (s / t)^b / t, for exponents a, b and ends s <= t.
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
    scale = 1 / np.sqrt(np.diag(products))  # to profiles of norm 1: better conditioned
    scaled = products * scale[:, None] * scale[None]
    solution = scale * np.linalg.lstsq(scaled, right * scale, rcond=RELATIVE_CUTOFF)[0]
    norm = profile_product(target, target)
    left = norm - 2 * right @ solution + solution @ products @ solution
    return solution, float(np.sqrt(max(left, 0) / norm))


def reconstruct(run: RunFolder, width: float, output: Path | None = None) -> tuple[Path, float]:
    """Write the average of `width` at the last snapshot; returns the file and the fit's error.

    The file is `output`, by default RUN/ema/width-….safetensors; it has every tensor of the
    network. UserError if the snapshots are too few for this width.
    """
    if not SMALLEST_STD <= width <= LARGEST_STD:
        raise UserError(
            f"The width is {width:g}; choose one in [{SMALLEST_STD:g}, {LARGEST_STD:g}]."
        )
    snapshots = [Snapshot(run.averages, images) for images in snapshot_positions(run.averages)]
    checkpoint = newest_checkpoint(run.checkpoints)
    if not snapshots or checkpoint is None:
        raise UserError(
            f"{run.path} has no snapshots of its averages; train with ema.snapshots above 0."
        )
    sources = [(snapshot, w) for snapshot in snapshots for w in snapshot.widths]
    profiles = [Profile(snapshot.images, power_exponent(w)) for snapshot, w in sources]
    target = Profile(snapshots[-1].images, power_exponent(width))
    coefficients, error = fit_profile(profiles, target)
    if error > LARGEST_ERROR:
        raise UserError(
            f"The {len(snapshots)} snapshots of {run.path} give width {width:g} with an error of "
            f"{error:.0%}, above {LARGEST_ERROR:.0%}; choose a width nearer to those tracked, or "
            "train with more ema.snapshots."
        )
    tensors = {
        name: _combine(name, tensor, sources, coefficients)
        for name, tensor in checkpoint.tensors("ema").items()
    }
    path = output if output is not None else reconstructed_path(run, width)
    make_folder(path.parent)
    write_bytes(path, save(tensors, {"width": f"{width:g}", "images": str(target.images)}))
    return path, error


def reconstructed_path(run: RunFolder, width: float) -> Path:
    """The default output of `reconstruct`."""
    return run.averages / f"width-{width:g}.safetensors"


def load_average(
    run: RunFolder, checkpoint: Checkpoint, choice: str | None, module: nn.Module
) -> None:
    """Load an average of a run into `module`.

    choice: a tracked or reconstructed width, a file, or None for the first tracked width.
    UserError if there is no such average.
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
        raise UserError(
            f"The average {choice} is neither a file nor a width; choose a width that "
            f"{run.config_path} names in ema.widths."
        ) from None
    tracked = checkpoint.config.get("ema", {}).get("widths", [])
    names = average_names(tracked)
    if width in names:
        return checkpoint.path / f"{names[width]}.safetensors"
    path = reconstructed_path(run, width)
    if not path.is_file():
        raise UserError(
            f"{run.path} has no average of width {width:g} (tracked: "
            f"{', '.join(f'{value:g}' for value in tracked)}); reconstruct it with "
            f"`latentddm ema {run.path} --width {width:g}`."
        )
    _require_current(run, checkpoint, path)
    return path


def _require_current(run: RunFolder, checkpoint: Checkpoint, path: Path) -> None:
    """UserError unless a reconstructed average is of the newest snapshots and weights."""
    with safe_open(path, "pt") as file:
        seen = (file.metadata() or {}).get("images")
    if seen != str(max(snapshot_positions(run.averages), default=0)):
        raise UserError(
            f"{path} is older than the snapshots of {run.path}, which has been trained since; "
            "reconstruct it again with `latentddm ema`."
        )
    newest = newest_checkpoint(run.checkpoints)
    if newest is None or newest.images != checkpoint.images:
        raise UserError(
            f"{path} is an average of the newest weights of {run.path}, not of those at "
            f"{checkpoint.images:,} images; choose a width that was tracked."
        )


def _combine(
    name: str, tensor: Tensor, sources: Sequence[tuple[Snapshot, float]], coefficients: np.ndarray
) -> Tensor:
    """One tensor of the average; one that the snapshots lack is a buffer, constant in training."""
    if not sources[0][0].holds(name):
        return tensor
    total = torch.zeros_like(tensor, dtype=torch.float64)
    for (snapshot, width), coefficient in zip(sources, coefficients, strict=True):
        total += coefficient * snapshot.tensor(width, name)
    return total.to(tensor.dtype)
