"""Scores as they are written: sums over draws by loops, in float64, for tests of the fast ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import permutations

import torch
from torch import Tensor

Distance = Callable[[Tensor, Tensor], float]


def draws_and_target(batch: int, m: int, *shape: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Standard normal draws [batch, m, *shape] and targets [batch, *shape]."""
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randn(batch, m, *shape, generator=generator, dtype=torch.float64)
    return draws, torch.randn(batch, *shape, generator=generator, dtype=torch.float64)


def by_loops(draws: Tensor, target: Tensor, distance: Distance, lam: float) -> float:
    """The score of one sample: a mean over j, less lambda / 2 times one over all j != k."""
    m = len(draws)
    confinement = sum(distance(one, target) for one in draws) / m
    if m == 1:
        return confinement
    pairs = sum(distance(one, other) for one, other in permutations(draws, 2))
    return confinement - lam / (2 * m * (m - 1)) * pairs


def norm(x: Tensor, y: Tensor) -> float:
    """The Euclidean norm of the flattened difference."""
    return math.dist(x.flatten().tolist(), y.flatten().tolist())


def power_distance(beta: float) -> Distance:
    """||x - y||^beta."""
    return lambda x, y: norm(x, y) ** beta


def kernel_distance(kernel: str, h: float, dimension: int = 1) -> Distance:
    """The kernels of the paper as distances of r = ||x - y|| / sqrt(dimension); h: bandwidth."""

    def distance(x: Tensor, y: Tensor) -> float:
        r = norm(x, y) / dimension**0.5
        if kernel == "rbf":
            return 2 * h**2 * (1 - math.exp(-(r**2) / (2 * h**2)))
        if kernel == "imq":
            return 2 * h**3 * (1 / h - (h**2 + r**2) ** -0.5)
        return h * (1 - math.exp(-r / h))

    return distance


def whole_and_position(beta: float, whole: float, position: float) -> Distance:
    """Root mean squares to the power beta: of all of x - y [C, H, W], and of each position's C."""

    def distance(x: Tensor, y: Tensor) -> float:
        square = (x - y).square()
        at_positions = square.mean(0) ** (beta / 2)
        return whole * float(square.mean()) ** (beta / 2) + position * float(at_positions.mean())

    return distance
