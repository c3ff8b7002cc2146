"""The settings with which a run is sampled, if no others are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from latentddm.engine.config import build
from latentddm.inference.best_settings import FIELDS, best_settings
from latentddm.inference.sampler import SamplerConfig
from latentddm.inference.settings import SamplingConfig
from latentddm.inference.xi_scale import ScaleRange, scales_of

STEPS = SamplingConfig().steps


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """The best settings measured for a run, and its sampler for all other numbers of evaluations.

    The defaults are the exact sampler. `sampler`: as it fits the network, `for_network`. made_for:
    the evaluations that a student was trained for.
    """

    best: Mapping[int, SamplingConfig] = field(default_factory=dict)  # by number of evaluations
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    made_for: int | None = None

    @classmethod
    def read(
        cls, run: Path, config: Mapping[str, Any], phase: int, reads_xi: bool, flow_map: bool
    ) -> RunSettings:
        """Those of a phase of the run in a folder, which has this config.

        UserError for a damaged file.
        """
        sampler = sampler_of(config, run, reads_xi, flow_map)
        best = best_settings(run, phase)
        return cls(best=best, sampler=sampler, made_for=config.get("steps"))

    @property
    def steps(self) -> int:
        """The default number of evaluations: that which a student was trained for.

        Else the measured number nearest to 4, or 4 if none was measured.
        """
        if self.made_for is not None:
            return self.made_for
        return min(self.best or (STEPS,), key=lambda steps: abs(steps - STEPS))

    def at(self, steps: int, **given: Any) -> SamplingConfig:
        """`given`, and for the rest the run's own settings.

        If one of FIELDS is given, the rest is the exact sampler's: they were measured together.
        """
        if any(name in given for name in FIELDS):
            own = SamplingConfig(steps=steps)
        else:
            own = self.best.get(steps) or self.sampler.settings(steps)
        return replace(own, **given)

    def describe(self, steps: int) -> str:
        """The origin of the settings for a number of evaluations, in words."""
        if steps in self.best:
            return f"the best measured for {steps} evaluations"
        return f"those of the run's sampler ({self.sampler.describe()})"

    def of_solver(self, solver: str, steps: int) -> SamplingConfig:
        """The settings for one solver at `steps` evaluations.

        Those measured with it at the nearest number of evaluations; for another number their scales
        of xi are spread evenly from the first to the last. Without any: the run's sampler if it has
        this solver, else the exact settings.
        """
        own = {count: config for count, config in self.best.items() if config.solver == solver}
        if not own:
            sampled = self.sampler.solver == solver
            return self.sampler.settings(steps) if sampled else SamplingConfig(steps=steps)
        nearest = min(own, key=lambda count: abs(count - steps))
        found = replace(own[nearest], steps=steps)
        if nearest == steps or not isinstance(found.xi_scale, tuple):
            return found
        between = ScaleRange(found.xi_scale[0], found.xi_scale[-1])
        return replace(found, xi_scale=scales_of(between, solver, steps))


def sampler_of(
    config: Mapping[str, Any], run: Path, reads_xi: bool, flow_map: bool
) -> SamplerConfig:
    """The sampler of a run's config, as it fits the network; a student has the exact one."""
    sampler = build(SamplerConfig, config.get("sampler") or {}, str(run), "sampler.")
    return sampler.for_network(reads_xi, flow_map)
