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

Norm = Literal["global", "position"]
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
    distance = _KERNEL_DISTANCES[kernel]
    draws, target = _one_position(draws, target)
    return _score_terms(draws, target, lambda squared: distance(squared, bandwidth)).score(1.0)


def energy_terms(
    draws: Tensor,
    target: Tensor,
    beta: Tensor | float = 1.0,
    norm: Norm = "global",
    mean_square: bool = False,
) -> ScoreTerms:
    """Confinement and interaction of the energy score, each [B]; arguments as in `energy_score`.

    norm "global" is one norm over the flattened sample. "position" is a norm over the channels at
    each spatial position, averaged over the positions; it sees only the marginals at a position.
    `mean_square` divides each squared norm by its dimension, so that the two agree in scale.
    """
    beta = torch.as_tensor(beta, dtype=draws.dtype, device=draws.device).reshape(-1, 1, 1)
    if norm == "global":
        draws, target = _one_position(draws, target)
    else:
        _check_shapes(draws, target)
        draws, target = draws.flatten(3), target.flatten(2)
    scale = 1 / target.shape[1] if mean_square else 1.0
    return _score_terms(draws, target, lambda squared: _power(scale * squared, beta / 2))


def _one_position(draws: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Flatten each sample into one position that holds everything: [B, m, D, 1] and [B, D, 1]."""
    _check_shapes(draws, target)
    return draws.reshape(*draws.shape[:2], -1, 1), target.reshape(len(target), -1, 1)


def _check_shapes(draws: Tensor, target: Tensor) -> None:
    """Refuse what would broadcast to a wrong score without a word."""
    if draws.ndim < 2 or draws.shape[:1] + draws.shape[2:] != target.shape:
        raise ValueError(
            f"draws must be [B, m, ...] and target [B, ...], the same but for m; "
            f"they are {list(draws.shape)} and {list(target.shape)}."
        )


def _score_terms(draws: Tensor, target: Tensor, distance: Callable[[Tensor], Tensor]) -> ScoreTerms:
    """Mean distances of draws to target and of draws to each other, each [B].

    draws: [B, m, D, P]; target: [B, D, P]; squared norms run over D, and P is averaged. Differences
    are taken directly: the Gram trick loses 1e-4 in bf16 and TF32.
    """
    confinement = distance((draws - target[:, None]).square().sum(2)).mean((1, 2))
    m = draws.shape[1]
    if m == 1:
        return ScoreTerms(confinement, torch.zeros_like(confinement))
    first, second = torch.triu_indices(m, m, offset=1, device=draws.device)
    pairs = (draws[:, first] - draws[:, second]).square().sum(2)  # [B, m (m - 1) / 2, P]
    return ScoreTerms(confinement, distance(pairs).mean((1, 2)))


def _power(squared: Tensor, exponent: Tensor) -> Tensor:
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
    distance = _power(squared, torch.tensor(0.5, dtype=squared.dtype, device=squared.device))
    return -h * torch.expm1(-distance / h)


_KERNEL_DISTANCES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "rbf": _rbf,
    "imq": _imq,
    "exponential": _exponential,
}
