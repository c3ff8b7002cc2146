"""The sampler: one plain function over (denoiser, x, times), and the grids of times.

A denoiser is any callable (x_t [B, ...], t [B], xi [B, ...]) -> x_0 [B, ...]: one that draws from
the posterior makes every number of steps exact, one that returns the mean makes plain diffusion.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import isfinite
from typing import Literal, NamedTuple, Protocol, get_args

import torch
from torch import Tensor

from latentddm.diffusion.process import Prediction, bridge_step
from latentddm.diffusion.schedules import FlowSchedule, Schedule, time_of_flow

GridKind = Literal["uniform", "log_snr", "power"]

POWER = 1 / 2  # power grid by default: 4 evaluations end at t = .50, 10 at .32 (uniform: .25, .10)
LOG_SNR_LIMIT = 14.0  # |log SNR| at the ends of a log-SNR grid; the flow's t = 1e-3 and 1 - 1e-3
NOISIEST = 0.999  # flow time; above it an x_0 made from eps is mostly rounding


class Denoiser(Protocol):
    """Draws (or predicts) x_0 given x_t; `xi` is standard normal noise of x_t's shape."""

    def __call__(self, x_t: Tensor, t: Tensor, xi: Tensor) -> Tensor: ...


class SamplingStep(NamedTuple):
    """One step from t to s, as a callback receives it after the network call."""

    step: int  # from 0
    t: Tensor
    s: Tensor
    x_t: Tensor
    x0: Tensor
    x_s: Tensor


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    x: Tensor,
    times: Tensor,
    churn: float = 0.0,
    schedule: Schedule = FlowSchedule(),
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    callback: Callable[[SamplingStep], None] | None = None,
    xi_scale: float | Sequence[float] = 1.0,
) -> Tensor:
    """Draw x_0 from noise in len(times) - 1 network calls (algorithm 2 of the paper).

    x: [B, ...], standard normal where times[0] = 1; times: strictly decreasing, in [0, 1]; a
    fresh xi is drawn for each call. One generator serves the batch; a list holds one for each
    sample, so that a sample does not depend on the batch it is drawn in. xi_scale: the standard
    deviation of xi, one number or one for each call; 1 is the exact sampler, below 1 the draws lie
    closer to their mean. Returns the last x_0, not x at times[-1]. ValueError for other times, for
    a churn outside [0, 1] and for scales that are negative or of another number.
    """
    times = times.to(x.dtype)
    check_times(times, churn)
    scales = xi_scales(xi_scale, len(times) - 1)
    times = times.to(x.device)
    x_t, x0 = x, x
    for step, (t, s) in enumerate(pairwise(times)):
        xi = scales[step] * normal_like(x_t, generator)
        x0 = denoiser(x_t, t.expand(len(x_t)), xi)
        last = step == len(times) - 2
        if last and callback is None:
            return x0
        noise = normal_like(x_t, generator) if churn > 0 else torch.zeros_like(x_t)
        x_s = bridge_step(x_t, x0, t, s, noise, schedule, churn)
        if callback is not None:
            callback(SamplingStep(step, t, s, x_t, x0, x_s))
        x_t = x_s
    return x0


def time_grid(
    steps: int,
    kind: GridKind = "uniform",
    safety: float = 0.0,
    schedule: Schedule = FlowSchedule(),
    power: float = POWER,
) -> Tensor:
    """steps + 1 decreasing times in float64, from 1 - safety to safety.

    uniform: equal steps of t, for diffusion and for DDM; log_snr: equal steps of the schedule's log
    SNR, for DPM-Solver++; power: t = u^power for equal steps of u, with few times near data for a
    power below 1: a draw made at more noise is as sharp. `safety` is the distance of the ends
    from 1 and 0 (0 <= safety < 1/2). ValueError for other arguments.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}.")
    if kind not in get_args(GridKind):
        raise ValueError(f"The grid must be one of {', '.join(get_args(GridKind))}, not {kind!r}.")
    if not 0 <= safety < 0.5:
        raise ValueError(f"safety must lie in [0, 0.5), not {safety}.")
    if not power > 0:
        raise ValueError(f"power must be positive, not {power}.")
    first, last = 1 - safety, safety
    uniform = torch.linspace(first, last, steps + 1, dtype=torch.float64)
    if kind == "uniform":
        return uniform
    if kind == "power":
        shares = torch.linspace(1, 0, steps + 1, dtype=torch.float64) ** power
        return last + (first - last) * shares
    limits = schedule.log_snr(uniform[[0, -1]]).clamp(-LOG_SNR_LIMIT, LOG_SNR_LIMIT)
    times = schedule.time_at(torch.linspace(limits[0], limits[1], steps + 1, dtype=torch.float64))
    times[0], times[-1] = first, last
    return times


def least_safety(prediction: Prediction, schedule: Schedule = FlowSchedule()) -> float:
    """The least distance from t = 1 at which a network of this prediction can be evaluated.

    alpha_1 = 0, so that no x_0 follows from eps there; x0, v and edm are exact at both ends.
    """
    return 1 - float(time_of_flow(NOISIEST, schedule)) if prediction == "eps" else 0.0


def check_times(times: Tensor, churn: float = 0.0) -> None:
    """ValueError for times or a churn outside the domain of the bridge."""
    if len(times) < 2:
        raise ValueError(
            f"times needs at least 2 entries, a start and an end; it has {len(times)}."
        )
    if not (times[0] <= 1 and times[-1] >= 0 and bool((times.diff() < 0).all())):
        raise ValueError(
            f"times must decrease strictly from at most 1 to at least 0 (in {times.dtype}, the "
            f"type of x); they are {times.tolist()}."
        )
    if not 0 <= churn <= 1:
        raise ValueError(f"churn must lie in [0, 1], not {churn}.")


def xi_scales(xi_scale: float | Sequence[float], calls: int) -> Sequence[float]:
    """One scale of xi for each of `calls` network calls; ValueError if they do not fit."""
    scales = [xi_scale] * calls if isinstance(xi_scale, int | float) else xi_scale
    if len(scales) != calls:
        raise ValueError(
            f"xi_scale holds {len(scales)} numbers, but there are {calls} network calls; give one "
            "number for all calls, or one for each."
        )
    if not all(isfinite(scale) and scale >= 0 for scale in scales):
        raise ValueError(f"xi_scale must be finite and at least 0, not {xi_scale}.")
    return scales


def extend_scales(scale: float | Sequence[float], calls: int) -> float | Sequence[float]:
    """Scales with the last one repeated up to `calls`; a number, or more than `calls`, as given."""
    if isinstance(scale, int | float) or not scale:
        return scale
    return [*scale, *[scale[-1]] * (calls - len(scale))]


def normal_like(x: Tensor, generator: torch.Generator | Sequence[torch.Generator] | None) -> Tensor:
    """Standard normal noise of x's shape, drawn on the generator's device."""
    if generator is None:
        return torch.randn_like(x)
    if isinstance(generator, torch.Generator):
        return _normal(x.shape, generator, x.dtype).to(x.device)
    if len(generator) != len(x):
        raise ValueError(f"{len(generator)} generators were given for a batch of {len(x)}.")
    rows = [_normal(x.shape[1:], one, x.dtype) for one in generator]
    return torch.stack(rows).to(x.device)  # at once: a copy to a GPU has a price of its own


def _normal(shape: Sequence[int], generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, generator=generator, device=generator.device, dtype=dtype)
