"""Statistics over all pairs of two samples, in blocks of rows so that memory stays bounded."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from latentddm.engine.errors import UserError
from latentddm.evaluation.protocol import Estimate, estimate_from

PairFunction = Callable[[Tensor, Tensor], Tensor]
"""(x [n, D], y [m, D]) -> [n, m]."""

BLOCK_ELEMENTS = 4_000_000
"""Elements of one block of a pair matrix: 32 MB in float64."""


def distances(x: Tensor, y: Tensor) -> Tensor:
    """Euclidean distances [n, m] of the rows of x and y."""
    return squared_distances(x, y).sqrt_()


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """Squared Euclidean distances [n, m]; centre the rows first, or large means cost digits."""
    squares = x.square().sum(1)[:, None] + y.square().sum(1)[None, :]
    return torch.addmm(squares, x, y.T, alpha=-2).clamp_min_(0)


def centred(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both samples in float64, shifted by minus the mean of b; distances are unchanged."""
    mean = b.double().mean(0)
    return a.double() - mean, b.double() - mean


def row_blocks(rows: int, columns: int) -> Iterator[slice]:
    """Slices of the rows whose blocks of a [rows, columns] matrix stay below BLOCK_ELEMENTS."""
    step = max(1, BLOCK_ELEMENTS // max(1, columns))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def row_means(x: Tensor, y: Tensor, pair: PairFunction) -> Tensor:
    """mean_j pair(x_i, y_j), [n]."""
    return torch.cat([pair(x[rows], y).mean(1) for rows in row_blocks(len(x), len(y))])


def row_means_without_self(x: Tensor, pair: PairFunction) -> Tensor:
    """mean over j != i of pair(x_i, x_j), [n], for a symmetric pair; needs at least two rows."""
    sums = torch.zeros(len(x), dtype=x.dtype, device=x.device)
    for rows in row_blocks(len(x), len(x)):
        block = pair(x[rows], x[rows.start :])
        block.fill_diagonal_(0)
        sums[rows] += block.sum(1)
        # By symmetry the columns right of the diagonal square are the rows below it.
        sums[rows.stop :] += block[:, rows.stop - rows.start :].sum(0)
    return sums / (len(x) - 1)


def pair_estimate(
    x: Tensor, y: Tensor, pair: PairFunction, with_itself: float | None = None
) -> Estimate:
    """2 E pair(X, Y) - E pair(X, X') - E pair(Y, Y'), a U-statistic, [n, D] against [m, D].

    Influence of row i of x: 2 (mean_j pair(x_i, y_j) - mean_j' pair(x_i, x_j')). with_itself: the
    value of pair(x_i, x_i), which then counts (the biased V-statistic). It is given and not
    computed: the distance of a row to itself need not round to zero. UserError for one row.
    """
    require_rows(x, 2)
    require_rows(y, 2)
    across = row_means(x, y, pair)
    within, reference = row_means_without_self(x, pair), row_means_without_self(y, pair)
    if with_itself is not None:
        within, reference = (
            (means * (len(means) - 1) + with_itself) / len(means) for means in (within, reference)
        )
    value = 2 * across.mean() - within.mean() - reference.mean()
    return estimate_from(value, 2 * (across - within))


def require_rows(features: Tensor, count: int) -> None:
    """UserError unless features are [N, D] with N >= count."""
    if features.ndim != 2 or len(features) < count:
        raise UserError(
            f"A distance needs features of shape [N, D] with N >= {count}, "
            f"not {list(features.shape)}; give more images."
        )
