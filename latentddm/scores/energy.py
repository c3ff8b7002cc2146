"""The energy score: distances are powers of norms (eq. 12 to 14 of arXiv 2502.02483)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from latentddm.scores.in_time import linear_in_time
from latentddm.scores.score import ScoreConfig, ScoreTerms, power_of_squares, score_terms
from latentddm.scores.views.whole import Whole, WholeConfig


@dataclass(frozen=True, kw_only=True)
class EnergyConfig(ScoreConfig):
    """d = r^beta, r the root mean square of a difference. beta 2, lambda 0 is the squared error."""

    kind: Literal["energy"] = "energy"
    beta: float = 1.0  # the exponent at pure noise, t = 1
    beta_data: float | None = None  # the exponent at data, t = 0; None: the same at every time

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("beta", "beta_data"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 2:
                raise ValueError(f"{name} must lie in (0, 2], not {value}")

    def distance(self, mean_squares: Tensor, t: Tensor) -> Tensor:
        """r^beta(t)."""
        return _power(mean_squares, self.beta_at(t))

    def beta_at(self, t: Tensor) -> Tensor | float:
        """beta(t), linear from `beta_data` at t = 0 to `beta` at t = 1 (iDDM), or a number."""
        return linear_in_time(self.beta_data, self.beta, t)


def energy_score(
    draws: Tensor, target: Tensor, beta: Tensor | float = 1.0, lam: Tensor | float = 1.0
) -> Tensor:
    """The energy score of m draws, [B] (eq. 12 to 14 of the paper), an unbiased U-statistic.

        1/m sum_j ||d_j - y||^beta - lambda / (2 m (m - 1)) sum_{j != k} ||d_j - d_k||^beta

    draws: [B, m, ...]; target: [B, ...]; beta in (0, 2], lambda in [0, 1]: scalar or [B]. The norm
    is Euclidean over the flattened sample. With m = 1 there is no interaction.
    """
    return energy_terms(draws, target, beta).score(lam)


def energy_terms(
    draws: Tensor, target: Tensor, beta: Tensor | float = 1.0, antithetic: bool = False
) -> ScoreTerms:
    """Confinement and interaction of `energy_score`, each [B]; other arguments as in `Score`."""
    dimension = math.prod(draws.shape[2:])
    return score_terms(
        draws,
        target,
        draws.new_zeros(len(draws)),
        [(Whole(), WholeConfig())],
        lambda mean_squares, _: _power(dimension * mean_squares, beta),
        antithetic,
    )


def _power(squares: Tensor, beta: Tensor | float) -> Tensor:
    """squares^(beta / 2), for squares [B, n, V] and beta a scalar or [B]."""
    # A number is much faster than a tensor of exponents.
    half = beta.to(squares).reshape(-1, 1, 1) / 2 if isinstance(beta, Tensor) else beta / 2
    return power_of_squares(squares, half)
