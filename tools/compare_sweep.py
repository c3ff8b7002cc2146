"""The settings that tools/compare.py tries with every method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Protocol, TypeVar, get_args

from latentddm.diffusion.sampling import POWER, GridKind
from latentddm.engine.errors import UserError
from latentddm.inference.settings import SamplingConfig
from latentddm.inference.xi_scale import ScaleRange, Scales


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """The settings tried with every method, of which the best counts; the exact ones come first."""

    evaluations: tuple[int, ...] = (1, 2, 4, 8, 10, 15, 50)
    churn: tuple[float, ...] = (0.0, 0.5, 1.0)
    safety: tuple[float, ...] = (0.0, 0.02, 0.05)
    grids: tuple[GridKind, ...] = get_args(GridKind)
    powers: tuple[float, ...] = (POWER,)
    xi_scales: tuple[Scales | ScaleRange, ...] = (1.0,)  # of methods that read xi
    noise_scales: tuple[float, ...] = (1.0,)
    seeds: tuple[int, ...] = (0,)
    tries: int | None = None  # settings of a method at a number of evaluations; None: all

    def __post_init__(self) -> None:
        """UserError names an empty or impossible range."""
        for name, values in vars(self).items():
            if name != "tries" and (not values or len(set(values)) < len(values)):
                raise UserError(f"--{name} needs at least one value, and no value twice.")
        if min(self.evaluations) < 1:
            raise UserError("--evaluations must be at least 1.")
        if not all(0 <= churn <= 1 for churn in self.churn):
            raise UserError("--churn must lie in [0, 1].")
        if not all(0 <= safety < 0.5 for safety in self.safety):
            raise UserError("--safety must lie in [0, 0.5).")
        if not all(0 < power < math.inf for power in self.powers):
            raise UserError("--powers must be positive.")
        if not all(0 < scale < math.inf for scale in self.noise_scales):
            raise UserError("--noise-scales must be positive.")
        if not all(0 <= each < math.inf for given in self.xi_scales for each in _numbers(given)):
            raise UserError("--xi-scales must be at least 0.")
        if self.tries is not None and self.tries < 1:
            raise UserError("--tries must be at least 1.")
        for grid in self.grids:
            if grid not in get_args(GridKind):
                known = ", ".join(get_args(GridKind))
                raise UserError(f"--grids: there is no grid {grid!r}; choose from {known}.")


def _numbers(given: Scales | ScaleRange) -> tuple[float, ...]:
    if isinstance(given, ScaleRange):
        return given.first, given.last
    return given if isinstance(given, tuple) else (given,)


class Sampled(Protocol):
    """A row of the table: a solver of a named method, at a number of images."""

    @property
    def name(self) -> str: ...
    @property
    def images(self) -> int: ...
    def is_own(self, sampling: SamplingConfig) -> bool:
        """Whether it is the setting that the row's runs are sampled by if none is given."""


Row = TypeVar("Row", bound=Sampled)


def limited(
    settings: Sequence[tuple[Row, SamplingConfig]], tries: int | None
) -> list[tuple[Row, SamplingConfig]]:
    """About `tries` settings of each method, in their order: equal effort for unequal grids.

    A method's rows share them. The first setting of each row, the exact one, and the runs' own are
    always tried, even if they alone are more; others are added at random, always the same.
    """
    if tries is None:
        return list(settings)
    kept: set[int] = set()
    for method in dict.fromkeys((row.name, row.images) for row, _ in settings):
        own = [i for i, (row, _) in enumerate(settings) if (row.name, row.images) == method]
        firsts = set({settings[i][0]: i for i in reversed(own)}.values())
        firsts |= {i for i in own if settings[i][0].is_own(settings[i][1])}
        others = [i for i in own if i not in firsts]
        more = min(max(tries - len(firsts), 0), len(others))
        kept |= {*firsts, *Random(0).sample(others, more)}
    return [settings[i] for i in sorted(kept)]
