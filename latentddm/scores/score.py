"""Proper scoring rules: how well m draws describe a distribution of which one sample is seen.

A score is the confinement (mean distance of the draws to the target) less lambda / 2 times the
interaction (mean distance of the draws to each other). Values are per sample, [B].

Source: De Bortoli et al., arXiv 2502.02483, eq. 12 to 14; Gneiting and Raftery 2007.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from latentddm.scores.views import VIEWS, Differences, View

WeightedViews = Sequence[tuple[View, float]]


class ScoreTerms(NamedTuple):
    """The two parts of a score, each [B]: score = confinement - lambda / 2 * interaction."""

    confinement: Tensor
    interaction: Tensor

    def score(self, lam: Tensor | float) -> Tensor:
        """confinement - lambda / 2 * interaction; lambda: scalar or [B]."""
        return self.confinement - lam / 2 * self.interaction


class Score(Protocol):
    """A scoring rule for training: its terms, and the weight lambda of the interaction."""

    def __call__(
        self, draws: Tensor, target: Tensor, t: Tensor, antithetic: bool = False
    ) -> ScoreTerms:
        """Confinement and interaction of draws [B, m, ...] of x_0 at times t [B]; each [B].

        target: [B, ...], or several of each, [B, n, ...], over which the confinement is averaged.
        antithetic: draws j and j + m / 2 were made from xi and -xi (`antithetic_pairs`). All draws
        have one distribution, but the two of a pair are not independent: the interaction leaves
        such pairs out, and has the same mean.
        """

    def lam_at(self, t: Tensor) -> Tensor | float:
        """lambda(t) in [0, 1]: a number, or [B]."""


@dataclass(frozen=True, kw_only=True)
class ScoreConfig(ABC):
    """The numbers of a score; `kind` is a name in SCORES. ValueError names a field out of range.

    One more score is a subclass with `distance`, or with a `make` of its own, and a line in SCORES
    (scores/__init__.py).
    """

    kind: str
    lam: float = 1.0  # lambda at pure noise, t = 1
    lam_data: float | None = None  # lambda at data, t = 0; None: the same at every time
    views: dict[str, float] = field(default_factory=lambda: {"whole": 0.5, "position": 0.5})

    @staticmethod
    def kinds() -> Mapping[str, type[ScoreConfig]]:
        """The registered scores by kind, the default first."""
        return SCORES

    def __post_init__(self) -> None:
        for name in ("lam", "lam_data"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} must lie in [0, 1], not {value}")
        for name, weight in self.views.items():
            if name not in VIEWS:
                raise ValueError(f"views: unknown view {name!r}; give one of {', '.join(VIEWS)}")
            if not 0 <= weight < float("inf"):
                raise ValueError(f"views.{name} must be a weight of at least 0, not {weight}")
        if not any(self.views.values()):
            raise ValueError("views must have a weight above 0")

    @abstractmethod
    def distance(self, mean_squares: Tensor, t: Tensor) -> Tensor:
        """Distances, elementwise, from mean squared differences [B, n, V] at times t [B]."""

    def make(self) -> Score:
        """The score; its views are made here, those of weight 0 left out."""
        views = [(VIEWS[name](), weight) for name, weight in self.views.items() if weight]
        return ViewScore(self, views)


SCORES: dict[str, type[ScoreConfig]] = {}  # filled in scores/__init__.py


class ViewScore:
    """A `Score`: the weighted sum over views of the score of one distance."""

    def __init__(self, config: ScoreConfig, views: WeightedViews) -> None:
        self.config, self.views = config, views

    def __call__(
        self, draws: Tensor, target: Tensor, t: Tensor, antithetic: bool = False
    ) -> ScoreTerms:
        """See `Score`."""
        return score_terms(draws, target, t, self.views, self.config.distance, antithetic)

    def lam_at(self, t: Tensor) -> Tensor | float:
        """lambda(t), linear from `lam_data` at t = 0 to `lam` at t = 1 (iDDM), or a number."""
        return linear_in_time(self.config.lam_data, self.config.lam, t)


def score_terms(
    draws: Tensor,
    target: Tensor,
    t: Tensor,
    views: WeightedViews,
    distance: Callable[[Tensor, Tensor], Tensor],
    antithetic: bool = False,
) -> ScoreTerms:
    """Unbiased estimates of both terms, each [B]; arguments as in `Score`.

        confinement = mean_jk d(draw_j, target_k),   interaction = mean_{j != k} d(draw_j, draw_k)

    with d the weighted sum over views of the mean over spots of `distance`, a function of mean
    squared differences [B, n, V] and t. In float32 or better. ValueError for shapes that do not
    fit.
    """
    _check_shapes(draws, target)
    dtype = torch.promote_types(draws.dtype, torch.float32)
    draws, t = draws.to(dtype), t.to(dtype)
    targets = (target if target.ndim == draws.ndim else target[:, None]).to(dtype)
    shared: Differences | None = None
    distances = []
    for view, weight in views:
        features = view.features(draws, t)
        if features is draws:
            shared = shared or _differences(draws, targets, antithetic)
            differences = shared
        else:
            differences = _differences(features, view.features(targets, t), antithetic)
        distances.append(weight * distance(view.mean_squares(differences), t).mean(2))  # [B, n]
    total = sum(distances[1:], distances[0])
    of_targets = draws.shape[1] * targets.shape[1]
    confinement, pairs = total[:, :of_targets].mean(1), total[:, of_targets:]
    return ScoreTerms(
        confinement, pairs.mean(1) if pairs.shape[1] else torch.zeros_like(confinement)
    )


def antithetic_pairs(xi: Tensor) -> Tensor:
    """xi [B, m / 2, ...], then -xi: [B, m, ...]. Odd functions of xi have a mean of zero."""
    return torch.cat([xi, -xi], dim=1)


def power_of_squares(squares: Tensor, exponent: Tensor | float) -> Tensor:
    """squares^exponent with value and gradient zero at zero, where the gradient is undefined.

    Zero includes numbers too small for a finite gradient: squares^(exponent - 1) overflows there.
    """
    apart = squares > torch.finfo(squares.dtype).tiny
    return torch.where(apart, squares, 1.0).pow(exponent) * apart


def linear_in_time(at_data: float | None, at_noise: float, t: Tensor) -> Tensor | float:
    """at_data + (at_noise - at_data) t, [B], float32 or better; at_noise if at_data is None."""
    if at_data is None:
        return at_noise
    return at_data + (at_noise - at_data) * t.to(torch.promote_types(t.dtype, torch.float32))


def _check_shapes(draws: Tensor, target: Tensor) -> None:
    """Refuse shapes that would broadcast to a wrong score in silence."""
    several = target.ndim == draws.ndim
    one = target.shape[:1] + target.shape[2:] if several else target.shape
    if draws.ndim < 2 or draws.shape[:1] + draws.shape[2:] != one:
        raise ValueError(
            f"draws must be [B, m, ...] and target [B, ...] or [B, n, ...], the same but for m and "
            f"n; they are {list(draws.shape)} and {list(target.shape)}."
        )


def _differences(draws: Tensor, targets: Tensor, antithetic: bool) -> Differences:
    """Each of m draws less each of n targets, then each pair of independent draws once.

    Differences are taken directly: the Gram trick loses 1e-4 in bf16 and TF32. A pair lies some
    places apart in the circle of the draws, at most m / 2; antithetic pairs are those that lie
    opposite each other.
    """
    m = draws.shape[1]
    parts = [(draws[:, :, None] - targets[:, None]).flatten(1, 2)]
    parts += [draws - draws.roll(places, 1) for places in range(1, (m + 1) // 2)]
    if m % 2 == 0 and not antithetic:
        parts.append(draws[:, : m // 2] - draws[:, m // 2 :])
    return Differences([part if part.ndim > 2 else part[..., None] for part in parts])
