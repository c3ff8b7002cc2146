"""Means over pairs of samples, a block of rows at a time so that memory stays bounded."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

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
    """Both sets in float64 less the mean of b; distances stay what they were."""
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
    """mean over j != i of pair(x_i, x_j), [n], for a symmetric pair; needs two rows at least."""
    sums = torch.zeros(len(x), dtype=x.dtype, device=x.device)
    for rows in row_blocks(len(x), len(x)):
        block = pair(x[rows], x[rows.start :])
        block.fill_diagonal_(0)
        sums[rows] += block.sum(1)
        # What lies right of the diagonal square also stands below it.
        sums[rows.stop :] += block[:, rows.stop - rows.start :].sum(0)
    return sums / (len(x) - 1)
