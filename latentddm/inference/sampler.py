"""How a run is sampled as long as no settings were measured for it: a part of its config."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from latentddm.diffusion.sampling import GridKind
from latentddm.diffusion.solvers import ONE_EVALUATION_A_STEP
from latentddm.inference.settings import SamplingConfig
from latentddm.inference.xi_scale import FALLING, ScaleRange, has_many_numbers, scales_of


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """The sampler of a run for any number of evaluations: solver, grid, scale of xi.

    `settings` gives the `SamplingConfig` for one number. The defaults are the exact sampler.
    """

    solver: str = "ddim"
    grid: GridKind | None = None  # None: the solver's own
    xi_scale: tuple[float, float] = (1.0, 1.0)  # evenly from the first evaluation's to the last's

    def __post_init__(self) -> None:
        """ValueError for an unknown solver, or a scale out of range."""
        if self.solver not in ONE_EVALUATION_A_STEP:
            known = ", ".join(ONE_EVALUATION_A_STEP)
            raise ValueError(f"solver must be one of {known}, not {self.solver!r}")
        if len(self.xi_scale) != 2 or not all(0 <= each < math.inf for each in self.xi_scale):
            raise ValueError(
                "xi_scale must be two numbers from 0 on, of the first and of the last evaluation"
            )

    def for_network(self, reads_xi: bool, flow_map: bool = False) -> SamplerConfig:
        """The same for plain diffusion, which has no xi; a flow map has steps of its own."""
        if flow_map:
            return SamplerConfig()
        return self if reads_xi else replace(self, xi_scale=(1.0, 1.0))

    def settings(self, steps: int) -> SamplingConfig:
        """For one number of evaluations."""
        scales = scales_of(ScaleRange(*self.xi_scale), self.solver, steps)
        return SamplingConfig(
            steps=steps,
            solver=self.solver,
            grid=self.grid,
            xi_scale=1.0 if self.xi_scale == (1.0, 1.0) else scales,
        )

    def describe(self) -> str:
        """Its name, for people: "UniPC, ξ × 1 to 0.25"."""
        names = {"ddim": "DDIM", "unipc": "UniPC", "dpmsolver++": "DPM-Solver++", "deis": "DEIS"}
        solver = names.get(self.solver, self.solver)
        if self.xi_scale == (1.0, 1.0):
            return solver
        return "{}, ξ × {:g} to {:g}".format(solver, *self.xi_scale)


def fitting_sampler(given: SamplerConfig | None, shape: Sequence[int]) -> SamplerConfig:
    """`given`; by default the exact sampler, or for latents of MANY_NUMBERS UniPC and a falling xi.

    There, draws of the exact sampler do not hang together as long as the network is small or
    briefly trained (tools/results/solvers-taef2).
    """
    if given is not None:
        return given
    if not has_many_numbers(shape):
        return SamplerConfig()
    return SamplerConfig(solver="unipc", grid="power", xi_scale=(FALLING.first, FALLING.last))
