"""Distances between two sets of features, [N, D] and [M, D]: one function per equation.

Each public distance is a float. The function of the same name that ends in `_estimate` also gives
the influence of each row of the first set, the basis of the bootstrap interval in protocol.py; the
second set is the reference and is held fixed. All computations are in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from latentddm.engine.errors import UserError
from latentddm.engine.seeding import torch_generator
from latentddm.evaluation.pairs import (
    centred,
    distances,
    pair_estimate,
    require_rows,
    row_blocks,
    squared_distances,
)
from latentddm.evaluation.protocol import Estimate, estimate_from

MmdKernel = Literal["rbf", "imq", "exponential"]


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [D] and unbiased covariance [D, D] of the rows, float64."""
    require_rows(features, 2)
    mean = features.mean(0, dtype=torch.float64)
    scatter = torch.zeros(len(mean), len(mean), dtype=torch.float64, device=features.device)
    for rows in row_blocks(len(features), len(mean)):
        block = features[rows].double() - mean
        scatter.addmm_(block.T, block)
    return mean, scatter / (len(features) - 1)


def frechet_distance(mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor) -> float:
    """The squared Wasserstein-2 distance of two Gaussians (Dowson and Landau 1982; FID's formula).

    |m1 - m2|^2 + tr(C1) + tr(C2) - 2 tr (C1^1/2 C2 C1^1/2)^1/2. The root is taken through
    symmetric eigen-decompositions; covariances may be singular.
    """
    root, _ = _root_and_inverse(cov1.double())
    overlap = torch.linalg.eigvalsh(_symmetric(root @ cov2.double() @ root))
    return _frechet_value(mean1, cov1, mean2, cov2, overlap.clamp_min(0).sqrt().sum())


def frechet_estimate(a: Tensor, b: Tensor) -> Estimate:
    """The Fréchet distance of two sets of features, biased upwards by about 1 / N.

    Influence: 2 (m1 - m2).(x - m1) + (x - m1)^T (I - T) (x - m1), where T is the optimal map
    C1^-1/2 (C1^1/2 C2 C1^1/2)^1/2 C1^-1/2 between the two Gaussians, on the span of the samples.
    """
    (mean1, cov1), (mean2, cov2) = moments(a), moments(b)
    root, inverse_root = _root_and_inverse(cov1)
    overlap, _ = _root_and_inverse(_symmetric(root @ cov2 @ root))
    transport = inverse_root @ overlap @ inverse_root
    slope, curvature = 2 * (mean1 - mean2), torch.eye(len(mean1)).to(transport) - transport
    influence = []
    for rows in row_blocks(len(a), len(mean1)):
        block = a[rows].double() - mean1
        influence.append(block @ slope + (block @ curvature * block).sum(1))
    value = _frechet_value(mean1, cov1, mean2, cov2, overlap.trace())
    return estimate_from(value, torch.cat(influence))


def energy_distance(a: Tensor, b: Tensor) -> float:
    """The energy distance, an unbiased U-statistic (Székely and Rizzo 2013, eq. 6.1).

    2 E|X - Y| - E|X - X'| - E|Y - Y'|, without the pairs of a row with itself.
    """
    return energy_estimate(a, b).value


def energy_estimate(a: Tensor, b: Tensor) -> Estimate:
    """energy_distance with influences 2 (mean_j |x_i - y_j| - mean_j' |x_i - x_j'|)."""
    return pair_estimate(*centred(a, b), distances)


def mmd2(
    a: Tensor, b: Tensor, kernel: MmdKernel = "rbf", bandwidth: float = 1.0, unbiased: bool = True
) -> float:
    """The squared maximum mean discrepancy (Gretton et al. 2012, eq. 3 unbiased, eq. 5 biased).

    E k(X, X') + E k(Y, Y') - 2 E k(X, Y). Kernels of r = |x - y| and bandwidth h: rbf
    exp(-r^2 / 2 h^2), imq (1 + r^2 / h^2)^-1/2, exponential exp(-r / h).
    """
    return mmd2_estimate(a, b, kernel, bandwidth, unbiased).value


def mmd2_estimate(
    a: Tensor, b: Tensor, kernel: MmdKernel = "rbf", bandwidth: float = 1.0, unbiased: bool = True
) -> Estimate:
    """mmd2 with influences 2 (mean_j' k(x_i, x_j') - mean_j k(x_i, y_j))."""
    if kernel not in _KERNELS:
        raise UserError(f"There is no kernel {kernel!r}; choose one of {', '.join(_KERNELS)}.")
    if not bandwidth > 0:
        raise UserError(f"The bandwidth of a kernel must be positive, not {bandwidth}.")
    shape = _KERNELS[kernel]
    # A kernel is a similarity: negated, it stands for the distance in the energy distance.
    return pair_estimate(
        *centred(a, b),
        lambda x, y: shape(squared_distances(x, y) / bandwidth**2).neg_(),
        with_itself=None if unbiased else -1.0,
    )


def median_distance(features: Tensor, limit: int = 1000) -> float:
    """The median distance among the first `limit` rows, the usual bandwidth of an MMD."""
    require_rows(features, 2)
    first = features[:limit].double()
    median = float(torch.pdist(first - first.mean(0)).median())
    if median == 0:
        raise UserError(
            "Most of the reference's features are equal, so the bandwidth of the metric mmd would "
            "be zero; choose another metric."
        )
    return median


def kid(a: Tensor, b: Tensor, subsets: int = 100, subset_size: int = 1000, seed: int = 0) -> float:
    """The kernel distance of Bińkowski et al. 2018: unbiased MMD^2, kernel (x.y / D + 1)^3.

    The mean over `subsets` random subsets of `subset_size` rows of each set; smaller sets are used
    whole, and a single time if both are.
    """
    return kid_estimate(a, b, subsets, subset_size, seed).value


def kid_estimate(
    a: Tensor, b: Tensor, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> Estimate:
    """kid; the influence of a row is its mean over the subsets that contain the row."""
    require_rows(a, 2)
    require_rows(b, 2)
    random = torch_generator(seed, "kernel distance")
    whole = len(a) <= subset_size and len(b) <= subset_size
    value, totals = 0.0, torch.zeros(len(a), dtype=torch.float64, device=a.device)
    seen = torch.zeros_like(totals)
    repeats = 1 if whole else subsets
    for _ in range(repeats):
        rows_a = torch.randperm(len(a), generator=random)[:subset_size].to(a.device)
        rows_b = torch.randperm(len(b), generator=random)[:subset_size].to(b.device)
        part = pair_estimate(a[rows_a].double(), b[rows_b].double(), _negative_polynomial)
        value += part.value / repeats
        totals[rows_a] += part.influence
        seen[rows_a] += 1
    return estimate_from(value, totals[seen > 0] / seen[seen > 0])


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
    """sliced_wasserstein; influences from the transport potentials phi, phi' = 2 (x - T(x))."""
    require_rows(a, 1)
    require_rows(b, 1)
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


def _negative_polynomial(x: Tensor, y: Tensor) -> Tensor:
    return -((x @ y.T / x.shape[1] + 1) ** 3)


_KERNELS: dict[str, Callable[[Tensor], Tensor]] = {
    "rbf": lambda squared: squared.div(-2).exp_(),
    "imq": lambda squared: (1 + squared).rsqrt_(),
    "exponential": lambda squared: squared.sqrt().neg_().exp_(),
}


def _frechet_value(mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor, root: Tensor) -> float:
    shift = (mean1.double() - mean2.double()).square().sum()
    return float(shift + cov1.double().trace() + cov2.double().trace() - 2 * root)


def _root_and_inverse(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The square root of a symmetric non-negative matrix, and its inverse on the matrix's span."""
    values, vectors = torch.linalg.eigh(matrix)
    roots = values.clamp_min(0).sqrt()
    rounding = values[-1] * len(values) * torch.finfo(values.dtype).eps
    inverse = torch.where(values > rounding, 1 / roots, 0.0)
    return (vectors * roots) @ vectors.T, (vectors * inverse) @ vectors.T


def _symmetric(matrix: Tensor) -> Tensor:
    return (matrix + matrix.T) / 2


def _quantile_steps(n: int, m: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The common refinement of two step functions of n and m equal steps: rows of each, widths.

    Positions are integers in units of 1 / (n m), so that no step is lost to rounding.
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
