"""Proper scoring rules: how well m draws describe a distribution of which one sample is seen.

A score is the confinement (mean distance of the draws to the target) less lambda / 2 times the
interaction (mean distance of the draws to each other). Values are per sample, [B].

Source: De Bortoli et al., arXiv 2502.02483, eq. 12 to 14; Gneiting and Raftery 2007.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from latentddm.scores.in_time import linear_in_time
from latentddm.scores.views import VIEWS, Differences, View, ViewConfig, ViewInputs

WeightedViews = Sequence[tuple[View, ViewConfig]]


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

    views: by kind, the weight alone or the settings of a `ViewConfig`. Under a name of its own,
    `fine: {kind: bands, ...}`, a kind can stand there several times.

    One more score is a subclass with `distance`, or with a `make` of its own, and a line in SCORES
    (scores/__init__.py).
    """

    kind: str
    lam: float = 1.0  # lambda at pure noise, t = 1
    lam_data: float | None = None  # lambda at data, t = 0; None: the same at every time
    views: dict[str, float | ViewConfig] = field(
        default_factory=lambda: {"whole": 0.5, "position": 0.5}
    )

    @staticmethod
    def kinds() -> Mapping[str, type[ScoreConfig]]:
        """The registered scores by kind, the default first."""
        return SCORES

    def __post_init__(self) -> None:
        for name in ("lam", "lam_data"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} must lie in [0, 1], not {value}")
        for name, view in self.views.items():
            if isinstance(view, ViewConfig):
                continue
            if name not in VIEWS:
                raise ValueError(f"views: unknown view {name!r}; give one of {', '.join(VIEWS)}")
            if not 0 <= view < float("inf"):
                raise ValueError(f"views.{name} must be a weight of at least 0, not {view}")
        if not self._views():  # made here, so that a missing setting is found
            raise ValueError("views must have a weight above 0")

    @abstractmethod
    def distance(self, mean_squares: Tensor, t: Tensor) -> Tensor:
        """Distances, elementwise, from mean squared differences [B, n, V] at times t [B]."""

    def check_latents(self, shape: Sequence[int]) -> None:
        """ValueError, naming the view, if latents [C, H, W] do not fit."""
        for view in self._views():
            view.check_latents(shape)

    def check_micro_batch(self, images: int) -> None:
        """ValueError, naming the view, if micro-batches of so many images do not fit."""
        for view in self._views():
            view.check_micro_batch(images)

    def resolved(self) -> ScoreConfig:
        """The same with nothing left open: what a run keeps of it."""
        views = {
            name: view.resolved() if isinstance(view, ViewConfig) else view
            for name, view in self.views.items()
        }
        return replace(self, views=views)

    def make(self, inputs: ViewInputs | None = None) -> Score:
        """The score; its views are made here, those of weight 0 left out.

        inputs: of a training. ValueError without them for a view that is made from the data.
        """
        return ViewScore(self, [(view.make(inputs), view) for view in self._views()])

    def _views(self) -> list[ViewConfig]:
        """The settings of the views whose weight is above 0; a number is a weight by kind."""
        views = [
            view if isinstance(view, ViewConfig) else VIEWS[name](weight=view)  # type: ignore[call-arg]
            for name, view in self.views.items()
        ]
        return [view for view in views if view.is_on]


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
    shared = _Comparison(draws, targets, t, antithetic)
    of_all, of_some = [], []
    for view, config in views:
        rows = config.rows(t)
        if rows is None:
            distances = shared.distances(view, distance)
            of_all.append(_rows_of(config.weight_at(t)) * distances)
        elif len(rows):
            part = _Comparison(draws[rows], targets[rows], t[rows], antithetic)
            weight = _rows_of(config.weight_at(t[rows]))
            of_some.append((rows, weight * part.distances(view, distance)))
    total = sum(of_all[1:], of_all[0]) if of_all else _zeros_with_gradient(draws, shared.count)
    for rows, distances in of_some:
        total = total.index_add(0, rows, distances)
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


def _check_shapes(draws: Tensor, target: Tensor) -> None:
    """Refuse shapes that would broadcast to a wrong score in silence."""
    several = target.ndim == draws.ndim
    one = target.shape[:1] + target.shape[2:] if several else target.shape
    if draws.ndim < 2 or draws.shape[:1] + draws.shape[2:] != one:
        raise ValueError(
            f"draws must be [B, m, ...] and target [B, ...] or [B, n, ...], the same but for m and "
            f"n; they are {list(draws.shape)} and {list(target.shape)}."
        )


class _Comparison:
    """Draws [B, m, ...] and targets [B, n, ...] at times t [B], to be compared by several views."""

    def __init__(self, draws: Tensor, targets: Tensor, t: Tensor, antithetic: bool) -> None:
        self.draws, self.targets, self.t, self.antithetic = draws, targets, t, antithetic

    def distances(self, view: View, distance: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Means over the spots of a view, [B, count]."""
        features = view.features(self.draws, self.t)
        if features is self.draws:
            differences = self._of_samples
        else:
            targets = view.features(self.targets, self.t)
            differences = _differences(features, targets, self.antithetic)
        return distance(view.mean_squares(differences), self.t).mean(2)

    @cached_property
    def _of_samples(self) -> Differences:
        return _differences(self.draws, self.targets, self.antithetic)

    @property
    def count(self) -> int:
        """The number of differences for each x_t."""
        m = self.draws.shape[1]
        opposite = m // 2 if m % 2 == 0 and not self.antithetic else 0
        return m * self.targets.shape[1] + m * ((m - 1) // 2) + opposite


def _zeros_with_gradient(draws: Tensor, count: int) -> Tensor:
    """Zeros [B, count] with a gradient, of zeros: for a micro-batch without a compared sample."""
    return draws.flatten(1).sum(1, keepdim=True).mul(0).expand(-1, count)


def _rows_of(weight: Tensor | float) -> Tensor | float:
    """A weight, a number or [B], that multiplies [B, n]."""
    return weight[:, None] if isinstance(weight, Tensor) else weight


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
