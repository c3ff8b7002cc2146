"""How the demo samples its two methods."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from latentddm.diffusion.sampling import GridKind
from latentddm.diffusion.solvers import ONE_EVALUATION_A_STEP
from latentddm.inference.settings import SamplingConfig
from latentddm.inference.xi_scale import FALLING, MANY_NUMBERS, ScaleRange


@dataclass(frozen=True, kw_only=True)
class DemoSampler:
    """One solver and grid for both methods; the scale of xi is the DDM's."""

    solver: str = "ddim"
    grid: GridKind | None = None  # None: the solver's own
    xi_scale: tuple[float, float] = (1.0, 1.0)  # of the first and the last evaluation

    def __post_init__(self) -> None:
        """ValueError for an unknown solver, or a scale out of range."""
        if self.solver not in ONE_EVALUATION_A_STEP:
            known = ", ".join(ONE_EVALUATION_A_STEP)
            raise ValueError(f"solver must be one of {known}, not {self.solver!r}")
        if len(self.xi_scale) != 2 or not all(0 <= each < math.inf for each in self.xi_scale):
            raise ValueError(
                "xi_scale must be two numbers from 0 on, of the first and of the last evaluation"
            )

    def settings(self, steps: int, draws: bool, batch_size: int) -> SamplingConfig:
        """Of one number of evaluations; draws: of the DDM."""
        return SamplingConfig(
            steps=steps,
            solver=self.solver,
            grid=self.grid,
            xi_scale=ScaleRange(*self.xi_scale).over(steps) if draws else 1.0,
            batch_size=batch_size,
        )

    def describe(self, draws: bool) -> str:
        """The name of a method, for the report."""
        solver = {"ddim": "DDIM", "unipc": "UniPC"}.get(self.solver, self.solver)
        if not draws:
            return f"plain diffusion ({solver})"
        said = [] if self.solver == "ddim" else [solver]
        if self.xi_scale != (1.0, 1.0):
            said.append("ξ × {:g} to {:g}".format(*self.xi_scale))
        return f"DDM ({', '.join(['energy score', *said])})"


def fitting_sampler(given: DemoSampler | None, shape: Sequence[int]) -> DemoSampler:
    """The sampler given, or for latents of this shape the exact one, or the one for many numbers.

    From MANY_NUMBERS on draws of the exact sampler do not hang together in the demo's minutes.
    """
    if given is not None:
        return given
    if math.prod(shape) < MANY_NUMBERS:
        return DemoSampler()
    return DemoSampler(solver="unipc", grid="power", xi_scale=(FALLING.first, FALLING.last))
