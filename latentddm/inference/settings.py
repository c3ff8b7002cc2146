"""The settings of a sampler, and those that a flow map has no use for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from latentddm.diffusion.flow_maps import dyadic_times
from latentddm.diffusion.sampling import POWER, Denoiser, GridKind, extend_scales, time_grid
from latentddm.diffusion.schedules import Schedule
from latentddm.diffusion.solvers import evaluations_of, solve
from latentddm.engine.errors import UserError

FOREIGN_TO_FLOW_MAPS = ("churn", "xi_scale", "safety", "solver")  # they are for draws or velocities


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """The settings of a sampler; image i depends on the seed and on i alone."""

    steps: int = 4  # network evaluations, at most: Heun's method makes an odd number of them
    churn: float = 0.0  # of ddim
    xi_scale: float | tuple[float, ...] = (
        1.0  # of xi, by evaluation (the last is repeated); 1 is exact
    )
    noise_scale: float = 1.0  # of the noise at t = 1; 1 is exact
    safety: float = 0.0  # distance of the times from t = 0 and 1
    # None: any; "every": image i has class i modulo the number of classes
    label: int | Literal["every"] | None = None
    guidance: float = 1.0  # above 1 exaggerates the label, at two evaluations a step
    solver: str = "ddim"  # one of solvers.SOLVERS; the others are for plain diffusion
    grid: GridKind | None = None  # None: the solver's own
    power: float = POWER  # the exponent of the power grid
    seed: int = 0
    ema: str | None = None  # width or file of the average; None: the first that was tracked
    batch_size: int = 64


def solve_by(
    config: SamplingConfig,
    denoiser: Denoiser,
    x: Tensor,
    times: Tensor,
    schedule: Schedule,
    generator: torch.Generator | Sequence[torch.Generator],
) -> Tensor:
    """x_0 by `solvers.solve` with the solver, the churn and the scales of xi of `config`."""
    calls = evaluations_of(config.solver, len(times) - 1)
    return solve(
        denoiser,
        x,
        times,
        config.solver,
        churn=config.churn,
        generator=generator,
        schedule=schedule,
        xi_scale=extend_scales(config.xi_scale, calls),
    )


def class_labels(label: int | str, indices: Sequence[int], classes: int) -> int | Tensor:
    """The class of all images, or the classes [B] of the images `indices` for "every"."""
    return torch.tensor([i % classes for i in indices]) if isinstance(label, str) else label


def flow_map_times(learnt: str, config: SamplingConfig) -> Tensor:
    """The times of the steps of a flow map; UserError names settings that it has no use for.

    learnt: the steps it has learnt, "free" or "dyadic"; the times of dyadic ones follow from their
    number.
    """
    dyadic, default = learnt == "dyadic", SamplingConfig()
    for name in (*FOREIGN_TO_FLOW_MAPS, *(("grid", "power") if dyadic else ())):
        value = getattr(config, name)
        if value != getattr(default, name):
            raise UserError(
                f"{name} is {value}, but the run is sampled as a flow map (by the objective of its "
                "last phase), which has no such setting; leave it out."
            )
    try:
        if dyadic:
            return dyadic_times(config.steps)
        return time_grid(config.steps, config.grid or "uniform", power=config.power)
    except ValueError as error:
        raise UserError(str(error)) from None
