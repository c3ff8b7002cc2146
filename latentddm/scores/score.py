"""Proper scoring rules: how well m draws describe a distribution of which one sample is seen.

A score is the confinement (how far the draws lie from the target) less lambda / 2 times the
interaction (how far they lie from each other). All functions return one value per sample, [B].

Source: De Bortoli et al., arXiv 2502.02483, eq. 12 to 14; Gneiting and Raftery 2007.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Kernel = Literal["rbf", "imq", "exponential"]


class ScoreTerms(NamedTuple):
    """The two parts of a score, each [B]: score = confinement - lambda / 2 * interaction."""

    confinement: Tensor
    interaction: Tensor

    def score(self, lam: Tensor | float) -> Tensor:
        """confinement - lambda / 2 * interaction; lambda: scalar or [B]."""
        return self.confinement - lam / 2 * self.interaction


def energy_score(
    draws: Tensor, target: Tensor, beta: Tensor | float = 1.0, lam: Tensor | float = 1.0
) -> Tensor:
    """The energy score of m draws, [B] (eq. 12 to 14 of the paper), an unbiased U-statistic.

        1/m sum_j ||d_j - y||^beta - lambda / (2 m (m - 1)) sum_{j != k} ||d_j - d_k||^beta

    draws: [B, m, ...]; target: [B, ...]; beta in (0, 2], lambda in [0, 1]: scalar or [B]. The norm
    is Euclidean over the flattened sample. With m = 1 there is no interaction.
    """
    return energy_terms(draws, target, beta).score(lam)


def kernel_score(
    draws: Tensor, target: Tensor, kernel: Kernel = "rbf", bandwidth: float = 1.0
) -> Tensor:
    """The kernel score of m draws, [B]; its divergence is a multiple of the squared MMD.

    The kernels are written as distances, so that their limits can be read off (r = ||x - y||);
    a distance c (1 - k(r)) makes the divergence c / 2 times the squared MMD of the kernel k:

        rbf          2 h^2 (1 - exp(-r^2 / 2 h^2))         -> r^2 for a large bandwidth h
        imq          2 h^3 (1 / h - (h^2 + r^2)^(-1/2))    -> r^2
        exponential  h (1 - exp(-r / h))                   -> r
    """
    squared, pairs = _squared_norms(draws, target)
    distances = _KERNEL_DISTANCES[kernel](squared.sum(2), bandwidth)
    return _terms(distances, pairs).score(1.0)


def energy_terms(
    draws: Tensor,
    target: Tensor,
    beta: Tensor | float = 1.0,
    position_share: float = 0.0,
    mean_square: bool = False,
    antithetic: bool = False,
) -> ScoreTerms:
    """Confinement and interaction of the energy score, each [B]; arguments as in `energy_score`.

    target: [B, ...], or several of each, [B, n, ...], over which the confinement is averaged.
    position_share: how much of the score is of the per-position norm, over the channels at each
    spatial position, averaged over the positions: it sees only the marginals at a position. The
    rest is of the global norm, over the flattened sample. `mean_square` divides each squared norm
    by its dimension, so that the two agree in scale.
    antithetic: draws j and j + m / 2 were made from xi and -xi (`antithetic_pairs`). Each has the
    law of all the others, but the two are not independent: the interaction leaves such pairs out,
    and has the same mean.
    """
    squared, pairs = _squared_norms(draws, target, antithetic)
    dimension = draws[0, 0].numel() if mean_square else 1
    channels = dimension // squared.shape[2] if mean_square else 1
    # A number is much faster than a tensor of exponents.
    half = beta.to(draws).reshape(-1, 1, 1) / 2 if isinstance(beta, Tensor) else beta / 2
    distances = torch.zeros_like(squared[..., 0])
    if position_share < 1:
        whole = _power(squared.sum(2, keepdim=True) / dimension, half)
        distances = distances + (1 - position_share) * whole.squeeze(2)
    if position_share > 0:
        distances = distances + position_share * _power(squared / channels, half).mean(2)
    return _terms(distances, pairs)


def antithetic_pairs(xi: Tensor) -> Tensor:
    """xi [B, m / 2, ...], then -xi: [B, m, ...]. What is odd in xi cancels in a mean of draws."""
    return torch.cat([xi, -xi], dim=1)


def _check_shapes(draws: Tensor, target: Tensor) -> None:
    """Refuse what would broadcast to a wrong score without a word."""
    several = target.ndim == draws.ndim
    one = target.shape[:1] + target.shape[2:] if several else target.shape
    if draws.ndim < 2 or draws.shape[:1] + draws.shape[2:] != one:
        raise ValueError(
            f"draws must be [B, m, ...] and target [B, ...] or [B, n, ...], the same but for m and "
            f"n; they are {list(draws.shape)} and {list(target.shape)}."
        )


def _pair_differences(draws: Tensor, antithetic: bool) -> Tensor:
    """d_j - d_k of every pair of independent draws, [B, pairs, ...].

    A pair lies some places apart in the circle of the m draws, at most m / 2; antithetic pairs are
    those that lie opposite each other.
    """
    m = draws.shape[1]
    apart = [draws[:, :0]]  # no pair, of a single draw
    apart += [draws - draws.roll(places, 1) for places in range(1, (m + 1) // 2)]
    if m % 2 == 0 and not antithetic:
        apart.append(draws[:, : m // 2] - draws[:, m // 2 :])
    return torch.cat(apart, dim=1)


def _squared_norms(draws: Tensor, target: Tensor, antithetic: bool = False) -> tuple[Tensor, int]:
    """Squared norms over the channels at each of P positions, [B, m n + pairs, P], and `pairs`.

    First those of each draw less each target, then of each pair of independent draws. Differences
    are taken directly: the Gram trick loses 1e-4 in bf16 and TF32.
    """
    _check_shapes(draws, target)
    apart = _pair_differences(draws, antithetic)
    channels = draws.shape[2] if draws.ndim > 2 else 1
    positions = draws[0, 0].numel() // channels
    targets = target if target.ndim == draws.ndim else target[:, None]
    to_targets = (draws[:, :, None] - targets[:, None]).flatten(1, 2)
    parts = [x.reshape(*x.shape[:2], channels, positions) for x in (to_targets, apart)]
    return torch.cat([x.square().sum(2) for x in parts], dim=1), apart.shape[1]


def _terms(distances: Tensor, pairs: int) -> ScoreTerms:
    """Means of the distances to targets and of those of the pairs; both are in [B, n]."""
    confinement = distances[:, : distances.shape[1] - pairs].mean(1)
    if pairs == 0:
        return ScoreTerms(confinement, torch.zeros_like(confinement))
    return ScoreTerms(confinement, distances[:, -pairs:].mean(1))


def _power(squared: Tensor, exponent: Tensor | float) -> Tensor:
    """squared^exponent with value and gradient zero at zero, where the gradient is undefined.

    Zero includes what is too small for a finite gradient: squared^(exponent - 1) overflows there.
    """
    apart = squared > torch.finfo(squared.dtype).tiny
    return torch.where(apart, squared, 1.0).pow(exponent) * apart


def _rbf(squared: Tensor, h: float) -> Tensor:
    return -2 * h**2 * torch.expm1(-squared / (2 * h**2))


def _imq(squared: Tensor, h: float) -> Tensor:
    # 2 h^2 (1 - (1 + r^2 / h^2)^(-1/2)), written so that nothing cancels for a large h
    return -2 * h**2 * torch.expm1(-0.5 * torch.log1p(squared / h**2))


def _exponential(squared: Tensor, h: float) -> Tensor:
    return -h * torch.expm1(-_power(squared, 0.5) / h)


_KERNEL_DISTANCES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "rbf": _rbf,
    "imq": _imq,
    "exponential": _exponential,
}
