"""The sliced Wasserstein distance: optimal transport along random lines."""

from __future__ import annotations

import torch
from torch import Tensor

from latentddm.engine.errors import UserError
from latentddm.engine.seeding import torch_generator
from latentddm.evaluation.estimate import Estimate
from latentddm.evaluation.pairs import centred, row_blocks


def sliced_wasserstein(a: Tensor, b: Tensor, projections: int = 256, seed: int = 0) -> float:
    """The sliced Wasserstein-2 distance (Bonneel et al. 2015), [N, D] against [M, D].

    sqrt(mean over directions u of W_2^2(u.X, u.Y)); in one dimension W_2^2 is the integral of the
    squared difference of the two quantile functions, taken exactly for any N and M. The directions
    are uniform on the sphere and seeded.
    """
    return sliced_wasserstein_estimate(a, b, projections, seed).value


def sliced_wasserstein_estimate(
    a: Tensor, b: Tensor, projections: int = 256, seed: int = 0
) -> Estimate:
    """sliced_wasserstein with influences from the transport potentials, phi' = 2 (x - T(x))."""
    if a.ndim != 2 or b.ndim != 2 or not len(a) or not len(b):
        raise UserError("A distance needs two sets of features [N, D] that are not empty.")
    a, b = centred(a, b)
    directions = torch.randn(
        a.shape[1],
        projections,
        generator=torch_generator(seed, "sliced wasserstein"),
        dtype=torch.float64,
    ).to(a.device)
    directions /= directions.norm(dim=0)
    rows_a, rows_b, widths = _quantile_steps(len(a), len(b), a.device)
    squared, influence = 0.0, torch.zeros(len(a), dtype=torch.float64, device=a.device)
    for columns in row_blocks(projections, len(a) + len(b)):
        along_a, order = (a @ directions[:, columns]).sort(0)
        along_b = (b @ directions[:, columns]).sort(0).values
        gap = along_a[rows_a] - along_b[rows_b]  # [steps, projections]
        squared += float((widths @ gap.square()).sum())
        mean_gap = torch.zeros_like(along_a).index_add_(0, rows_a, gap * widths[:, None]) * len(a)
        potential = _potential(along_a, mean_gap)
        influence += torch.zeros_like(potential).scatter_(0, order, potential).sum(1)
    value = (squared / projections) ** 0.5
    # d sqrt(v) = dv / (2 sqrt(v)); where the distance is zero its minimum has no slope.
    scale = 0.5 / value if value > 0 else 0.0
    return Estimate(value, scale * influence / projections)


def _quantile_steps(n: int, m: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Where two step functions of n and m equal steps are both constant: rows of each, widths.

    Positions are counted in units of 1 / (n m), as integers, so that no step is lost to rounding.
    """
    ends = torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n]).unique()
    widths = torch.diff(ends, prepend=torch.zeros(1, dtype=ends.dtype))
    starts = ends - widths
    return (
        (starts // m).to(device),
        (starts // n).to(device),
        (widths.double() / (n * m)).to(device),
    )


def _potential(along: Tensor, gap: Tensor) -> Tensor:
    """The integral of 2 gap over the sorted positions (trapezoid), less its mean; [N, P]."""
    rises = along.diff(dim=0) * (gap[1:] + gap[:-1])
    potential = torch.cat([torch.zeros_like(along[:1]), rises.cumsum(0)])
    return potential - potential.mean(0)
