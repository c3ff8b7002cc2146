"""Solvers for a mean denoiser: what a user of plain diffusion would pick for few evaluations.

Higher-order solvers extrapolate E[x_0 | x_t] along the trajectory, which a mean has and a draw from
the posterior has not: for a denoiser that draws, `sampling.sample` is exact and these are
not. Yet a trained network has errors of its own, and on a uniform grid extrapolation can outweigh
them: README.md of this folder says by how much.

The solvers are diffusers' schedulers, driven here and nowhere else. What had to be known of them:
`use_flow_sigmas` means sigma = t and alpha = 1 - t, as in FlowSchedule; the grid is assigned, since
`set_timesteps` knows a uniform one only; t = 1 has log SNR minus infinity (see Scheme); and the
last step is not theirs: from 15 steps on DEISMultistepScheduler extrapolates to t = 0 in its full
order, which spoils what it drew. Here every solver ends as it begins, in first order: x_0 itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from diffusers.schedulers import (
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from latentddm.diffusion.sampling import (
    POWER,
    Denoiser,
    GridKind,
    check_times,
    normal_like,
    sample,
    time_grid,
)

SolverName = Literal["ddim", "dpmsolver++", "sde-dpmsolver++", "deis", "unipc", "heun"]

# diffusers asks for all of it, and uses the flow's sigmas only: x_0 goes in as it is.
_FLOW: dict[str, Any] = {"use_flow_sigmas": True, "prediction_type": "sample"}


@dataclass(frozen=True)
class Scheme:
    """A solver of diffusers.

    first: the largest time at which its coefficients are finite, where diffusers starts its flow
    solvers too; a grid is brought there. grid: the kind that it is made for.
    """

    make: Callable[[], Any]
    first: float = 0.999
    grid: GridKind = "log_snr"
    stochastic: bool = False


SCHEMES: dict[str, Scheme] = {
    # DPM-Solver++(2M) and SDE-DPM-Solver++(2M), arXiv 2211.01095.
    "dpmsolver++": Scheme(partial(DPMSolverMultistepScheduler, solver_order=2, **_FLOW)),
    "sde-dpmsolver++": Scheme(
        partial(
            DPMSolverMultistepScheduler, solver_order=2, algorithm_type="sde-dpmsolver++", **_FLOW
        ),
        stochastic=True,
    ),
    # Third order: what diffusers recommends where nothing guides.
    # DEIS (log-rho multistep), arXiv 2204.13902.
    "deis": Scheme(partial(DEISMultistepScheduler, solver_order=3, **_FLOW)),
    # UniPC, predictor and corrector, B(h) = expm1(h), arXiv 2302.04867.
    "unipc": Scheme(partial(UniPCMultistepScheduler, solver_order=3, **_FLOW)),
    # Heun's second-order method on the flow's velocity: two evaluations a step, one in the last.
    "heun": Scheme(FlowMatchHeunDiscreteScheduler, first=1.0, grid="uniform"),
}
SOLVERS: tuple[str, ...] = ("ddim", *SCHEMES)


def solver_grid(
    solver: str,
    steps: int,
    kind: GridKind | None = None,
    safety: float = 0.0,
    power: float = POWER,
) -> Tensor:
    """`time_grid` between the times a solver can take; kind None: the grid it is made for."""
    if _known(solver) == "ddim":
        return time_grid(steps, kind or "uniform", safety, power=power)
    scheme = SCHEMES[solver]
    return time_grid(steps, kind or scheme.grid, max(safety, 1 - scheme.first), power=power)


def steps_within(solver: str, evaluations: int) -> int:
    """The most steps of a solver within a number of network evaluations."""
    return (evaluations + 1) // 2 if _known(solver) == "heun" else evaluations


def evaluations_of(solver: str, steps: int) -> int:
    """The network evaluations that a number of steps costs (NFE)."""
    return 2 * steps - 1 if _known(solver) == "heun" else steps


@torch.no_grad()
def solve(
    denoiser: Denoiser,
    x: Tensor,
    times: Tensor,
    solver: str = "ddim",
    churn: float = 0.0,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
) -> Tensor:
    """x_0 from noise with a solver by name, one of SOLVERS; the other arguments are `sample`'s.

    times: decreasing; a solver other than ddim brings the first to where its coefficients are
    finite. As in `sample` the last x_0 is returned, not x at times[-1]. "ddim" is `sample` itself,
    and it alone knows churn.
    ValueError for another name, for churn with another solver, and for times that do not decrease.
    """
    if _known(solver) == "ddim":
        return sample(denoiser, x, times, churn=churn, generator=generator)
    if churn:
        raise ValueError(f"churn is a setting of ddim; {solver} has none (it is {churn}).")
    check_times(times)
    scheme = SCHEMES[solver]
    grid = _within(times, solver)
    scheduler = _scheduler(scheme, grid)
    last = len(scheduler.timesteps) - 1
    for step, t in enumerate(scheduler.timesteps.to(x.dtype).to(x.device)):
        xi = normal_like(x, generator)
        x0 = denoiser(x, t.expand(len(x)), xi)
        if step == last:
            break
        extra: dict[str, Any] = {}
        if scheme.stochastic:
            extra["variance_noise"] = normal_like(x, generator)
        # Heun works on the velocity v = (x_t - x_0) / t, the others take x_0 itself.
        output = (x - x0) / t if solver == "heun" else x0
        x = scheduler.step(output, t, x, return_dict=False, **extra)[0]
    return x0


def _within(times: Tensor, solver: str) -> Tensor:
    """The times, float64, with the first where the solver's coefficients are finite."""
    grid, first = times.double().cpu().clone(), SCHEMES[solver].first
    grid[0] = grid[0].clamp_max(first)
    if not bool((grid.diff() < 0).all()):
        raise ValueError(
            f"{solver} starts at {first}, so all times but the first must lie below; make the grid "
            "with solver_grid."
        )
    return grid


def _scheduler(scheme: Scheme, grid: Tensor) -> Any:
    """diffusers' scheduler, ready at the first step of `grid`, with float64 coefficients."""
    scheduler = scheme.make()
    scheduler.set_timesteps(len(grid) - 1)
    twice = torch.ones(len(grid), dtype=torch.long)
    if isinstance(scheduler, FlowMatchHeunDiscreteScheduler):
        twice[1:-1] = 2  # a step's end is evaluated, then evaluated again as the next one's start
    scheduler.sigmas = grid.repeat_interleave(twice)
    scheduler.timesteps = scheduler.sigmas[:-1]
    scheduler.set_begin_index(0)
    return scheduler


def _known(solver: str) -> str:
    if solver not in SOLVERS:
        raise ValueError(f"solver must be one of {', '.join(SOLVERS)}, not {solver!r}.")
    return solver
