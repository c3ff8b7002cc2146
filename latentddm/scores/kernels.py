"""Kernel scores, whose divergence is a multiple of the squared MMD, with kernels as distances.

A distance c (1 - k(r)) makes the divergence c / 2 times the squared MMD of the kernel k. In this
form the limits for a large bandwidth h can be read off:

    rbf          2 h^2 (1 - exp(-r^2 / 2 h^2))         -> r^2
    imq          2 h^3 (1 / h - (h^2 + r^2)^(-1/2))    -> r^2
    exponential  h (1 - exp(-r / h))                   -> r

Source: De Bortoli et al., arXiv 2502.02483, section 4.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from latentddm.scores.score import ScoreConfig, power_of_squares, score_terms
from latentddm.scores.views.whole import Whole, WholeConfig


def rbf(squares: Tensor, h: float) -> Tensor:
    """2 h^2 (1 - exp(-r^2 / 2 h^2)) of r^2."""
    return -2 * h**2 * torch.expm1(-squares / (2 * h**2))


def imq(squares: Tensor, h: float) -> Tensor:
    """2 h^3 (1 / h - (h^2 + r^2)^(-1/2)) of r^2."""
    # 2 h^2 (1 - (1 + r^2 / h^2)^(-1/2)), written so that nothing cancels for a large h
    return -2 * h**2 * torch.expm1(-0.5 * torch.log1p(squares / h**2))


def exponential(squares: Tensor, h: float) -> Tensor:
    """h (1 - exp(-r / h)) of r^2."""
    return -h * torch.expm1(-power_of_squares(squares, 0.5) / h)


KERNELS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "rbf": rbf,
    "imq": imq,
    "exponential": exponential,
}


@dataclass(frozen=True, kw_only=True)
class KernelConfig(ScoreConfig):
    """d = c (1 - k(r)), r the root mean square of a difference, in which h is measured too."""

    kind: Literal["kernel"] = "kernel"
    kernel: str = "rbf"  # a name in KERNELS
    bandwidth: float = 1.0  # h

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self.kernel, self.bandwidth)

    def distance(self, mean_squares: Tensor, t: Tensor) -> Tensor:
        """c (1 - k(r)), the same at every t."""
        return KERNELS[self.kernel](mean_squares, self.bandwidth)


def kernel_score(
    draws: Tensor, target: Tensor, kernel: str = "rbf", bandwidth: float = 1.0
) -> Tensor:
    """The kernel score of m draws at lambda 1, [B], an unbiased U-statistic.

    draws: [B, m, ...]; target: [B, ...]; kernel: rbf, imq or exponential; bandwidth: h, in units of
    the Euclidean norm over the flattened sample. ValueError for another kernel or bandwidth.
    """
    _check(kernel, bandwidth)
    dimension = math.prod(draws.shape[2:])
    return score_terms(
        draws,
        target,
        draws.new_zeros(len(draws)),
        [(Whole(), WholeConfig())],
        lambda mean_squares, _: KERNELS[kernel](dimension * mean_squares, bandwidth),
    ).score(1.0)


def _check(kernel: str, bandwidth: float) -> None:
    if kernel not in KERNELS:
        raise ValueError(f"kernel must be one of {', '.join(KERNELS)}, not {kernel!r}")
    if not 0 < bandwidth < float("inf"):
        raise ValueError(f"bandwidth must be positive, not {bandwidth}")
