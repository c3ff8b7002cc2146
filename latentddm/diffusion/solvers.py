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
from math import inf
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
ONE_EVALUATION_A_STEP = tuple(solver for solver in SOLVERS if solver != "heun")


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


class SolverSteps:
    """The steps of a solver of diffusers between given times, over x_t itself; not for "ddim".

    times: decreasing; the first is clamped to the solver's domain. first: the number of the first
    step that is taken. Each step follows one evaluation, and they are taken in turn, as solvers of
    higher order keep what they have seen. ValueError for times that do not decrease.
    """

    def __init__(
        self, solver: str, times: Tensor, schedule: Schedule = FlowSchedule(), first: int = 0
    ) -> None:
        self._solver, self._scheme = solver, SCHEMES[_known(solver)]
        self.times = evaluation_times(times, solver, schedule)
        self._flow_times = flow_time(self.times, schedule)
        # x_t = (alpha_t + sigma_t) times the state of the flow schedule.
        self._factors = (schedule.alpha(self.times) + schedule.sigma(self.times)).tolist()
        self._scheduler = _scheduler(self._scheme, self._flow_times, len(times) - 1, first)

    @property
    def stochastic(self) -> bool:
        """Whether a step needs fresh noise."""
        return self._scheme.stochastic

    def step(self, index: int, x_t: Tensor, x0: Tensor, noise: Tensor | None = None) -> Tensor:
        """From x_t at times[index], and the denoiser's x_0 there, to the state at the next time."""
        extra = {"variance_noise": noise} if self.stochastic else {}
        flow_x, flow_t = x_t / self._factors[index], float(self._flow_times[index])
        # Heun's input is the velocity v = (x_t - x_0) / t, that of the others x_0 itself.
        output = (flow_x - x0) / flow_t if self._solver == "heun" else x0
        flow_x = self._scheduler.step(output, flow_t, flow_x, return_dict=False, **extra)[0]
        return self._factors[index + 1] * flow_x


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
    """x_0 from noise with a solver by name, one of SOLVERS; the others are arguments of `sample`.

    times: decreasing; the first is clamped to the domain of a solver other than ddim. As in
    `sample` the last x_0 is returned, not x at times[-1]. "ddim" is `sample` itself, the only one
    with churn. ValueError for another name, for churn with another solver, for times that do not
    decrease and for scales of xi that `sample` refuses.
    """
    check_noise(solver, churn)
    if solver == "ddim":
        return sample(denoiser, x, times, churn, schedule, generator, xi_scale=xi_scale)
    steps = SolverSteps(solver, times, schedule)
    scales = xi_scales(xi_scale, len(steps.times) - 1)
    x_t = x
    for index, t in enumerate(steps.times[:-1].to(x.dtype).to(x.device)):
        xi = scales[index] * normal_like(x, generator)
        x0 = denoiser(x_t, t.expand(len(x)), xi)
        if index == len(steps.times) - 2:
            break
        noise = normal_like(x, generator) if steps.stochastic else None
        x_t = steps.step(index, x_t, x0, noise)
    return x0


def check_noise(solver: str, churn: float, noise_scale: float = 1.0) -> None:
    """ValueError for an unknown solver, churn with another than "ddim", or an impossible scale."""
    if _known(solver) != "ddim" and churn:
        raise ValueError(f"churn is a setting of ddim; leave it out with {solver} (it is {churn}).")
    if not 0 < noise_scale < inf:
        raise ValueError(f"noise_scale must be positive, not {noise_scale}.")


def evaluation_times(times: Tensor, solver: str, schedule: Schedule) -> Tensor:
    """The times of the evaluations and the end, float64, within the domain of a solver; not "ddim".

    ValueError for times that do not decrease.
    """
    check_times(times)
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


def _scheduler(scheme: Scheme, flow_times: Tensor, steps: int, first: int) -> Any:
    """diffusers' scheduler at `flow_times[first]`, with float64 coefficients."""
    scheduler = scheme.make()
    scheduler.set_timesteps(steps)
    scheduler.sigmas = flow_times
    scheduler.timesteps = flow_times[:-1]
    scheduler.set_begin_index(first)
    return scheduler


def _known(solver: str) -> str:
    if solver not in SOLVERS:
        raise ValueError(f"solver must be one of {', '.join(SOLVERS)}, not {solver!r}.")
    return solver
