"""Solvers of the probability-flow ODE for a mean denoiser: the usual choice for plain diffusion.

Higher orders extrapolate E[x_0 | x_t], which is smooth along a trajectory; draws from the posterior
are not. For a denoiser that draws, `sampling.sample` is exact and these solvers are not, although
for a trained network extrapolation may remove more error than it adds.

The solvers are diffusers' schedulers, driven here and nowhere else:
- Any schedule is solved as the flow schedule with `use_flow_sigmas`: in the state
  x_t / (alpha_t + sigma_t) at the flow time sigma_t / (alpha_t + sigma_t). DPM-Solver++, DEIS and
  UniPC depend on alpha and sigma by their ratios alone, so their steps are those of their papers in
  the schedule itself; Heun's method is applied to the flow's velocity.
- The grid is assigned: `set_timesteps` of diffusers makes a uniform one.
- log SNR is minus infinity at t = 1; see `Scheme.first`.
- The last step is left out: from 15 steps on DEISMultistepScheduler extrapolates to t = 0 in full
  order, which spoils the sample. Every solver ends in first order, in x_0 itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from diffusers.schedulers import (
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from latentddm.diffusion.sampling import (
    NOISIEST,
    POWER,
    Denoiser,
    GridKind,
    check_times,
    normal_like,
    sample,
    time_grid,
    xi_scales,
)
from latentddm.diffusion.schedules import FlowSchedule, Schedule, flow_time, time_of_flow

# The denoiser's output is x_0 itself.
_FLOW: dict[str, Any] = {"use_flow_sigmas": True, "prediction_type": "sample"}


@dataclass(frozen=True)
class Scheme:
    """A solver of diffusers.

    first: the largest flow time with finite coefficients, at which diffusers starts its flow
    solvers too; a grid is clamped to it. grid: the kind that the solver is made for.
    """

    make: Callable[[], Any]
    first: float = NOISIEST
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
    # Third order, as diffusers recommends for sampling without guidance.
    # DEIS (log-rho multistep), arXiv 2204.13902.
    "deis": Scheme(partial(DEISMultistepScheduler, solver_order=3, **_FLOW)),
    # UniPC, predictor and corrector, B(h) = expm1(h), arXiv 2302.04867.
    "unipc": Scheme(partial(UniPCMultistepScheduler, solver_order=3, **_FLOW)),
    # Heun's second-order method: two evaluations a step, one in the last.
    "heun": Scheme(FlowMatchHeunDiscreteScheduler, first=1.0, grid="uniform"),
}
SOLVERS: tuple[str, ...] = ("ddim", *SCHEMES)


def solver_grid(
    solver: str,
    steps: int,
    kind: GridKind | None = None,
    safety: float = 0.0,
    power: float = POWER,
    schedule: Schedule = FlowSchedule(),
) -> Tensor:
    """`time_grid` within the domain of a solver; kind None: the grid that it is made for."""
    if _known(solver) == "ddim":
        return time_grid(steps, kind or "uniform", safety, schedule, power)
    safety = max(safety, 1 - _first_time(solver, schedule))
    return time_grid(steps, kind or SCHEMES[solver].grid, safety, schedule, power)


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
    schedule: Schedule = FlowSchedule(),
    xi_scale: float | Sequence[float] = 1.0,
) -> Tensor:
    """x_0 from noise with a solver by name, one of SOLVERS; the other arguments are `sample`'s.

    times: decreasing; the first is clamped to the domain of a solver other than ddim. As in
    `sample` the last x_0 is returned, not x at times[-1]. "ddim" is `sample` itself, the only one
    with churn. ValueError for another name, for churn with another solver, for times that do not
    decrease and for scales of xi that `sample` refuses.
    """
    if _known(solver) == "ddim":
        return sample(denoiser, x, times, churn, schedule, generator, xi_scale=xi_scale)
    if churn:
        raise ValueError(f"churn is a setting of ddim; {solver} has none (it is {churn}).")
    check_times(times)
    scheme = SCHEMES[solver]
    grid = _evaluation_times(times, solver, schedule)
    flow_times = flow_time(grid, schedule)
    scheduler = _scheduler(scheme, flow_times, len(times) - 1)
    scales = xi_scales(xi_scale, len(grid) - 1)
    size = (schedule.alpha(grid) + schedule.sigma(grid)).tolist()  # of x_t, in that of the flow
    flow_x = x / size[0]
    for step, t in enumerate(grid[:-1].to(x.dtype).to(x.device)):
        xi = scales[step] * normal_like(x, generator)
        x0 = denoiser(size[step] * flow_x, t.expand(len(x)), xi)
        if step == len(grid) - 2:
            break
        extra: dict[str, Any] = {}
        if scheme.stochastic:
            extra["variance_noise"] = normal_like(x, generator)
        flow_t = float(flow_times[step])
        # Heun's input is the velocity v = (x_t - x_0) / t, that of the others x_0 itself.
        output = (flow_x - x0) / flow_t if solver == "heun" else x0
        flow_x = scheduler.step(output, flow_t, flow_x, return_dict=False, **extra)[0]
    return x0


def _evaluation_times(times: Tensor, solver: str, schedule: Schedule) -> Tensor:
    """The times of the evaluations and the end, float64, within the solver's domain."""
    grid, first = times.double().cpu().clone(), _first_time(solver, schedule)
    grid[0] = grid[0].clamp_max(first)
    if not bool((grid.diff() < 0).all()):
        raise ValueError(
            f"{solver} starts at {first}, so all times but the first must lie below; make the grid "
            "with solver_grid."
        )
    if solver == "heun":  # evaluates the end of a step, and it again as the start of the next one
        return torch.cat([grid[:1], grid[1:-1].repeat_interleave(2), grid[-1:]])
    return grid


def _first_time(solver: str, schedule: Schedule) -> float:
    return float(time_of_flow(SCHEMES[solver].first, schedule))


def _scheduler(scheme: Scheme, flow_times: Tensor, steps: int) -> Any:
    """diffusers' scheduler at the first of `flow_times`, with float64 coefficients."""
    scheduler = scheme.make()
    scheduler.set_timesteps(steps)
    scheduler.sigmas = flow_times
    scheduler.timesteps = flow_times[:-1]
    scheduler.set_begin_index(0)
    return scheduler


def _known(solver: str) -> str:
    if solver not in SOLVERS:
        raise ValueError(f"solver must be one of {', '.join(SOLVERS)}, not {solver!r}.")
    return solver
