"""Flow maps: the solution of the probability-flow ODE from t to s < t in one evaluation.

On the flow schedule the ODE is dx/dt = v(x_t, t) = E[eps - x_0 | x_t], and a flow map X with
X(x_t, t, s) = x_s is exact with any number of steps. It is written in two ways:

    u(x_t, t, s) = (x_t - x_s) / (t - s)        the average velocity, at s = t the velocity v
    g(x_t, t, s) = x_t - t u(x_t, t, s)         where a straight line along u is at time 0

g has the place of x_0 in a DDIM step, x_s = DDIM(x_t, g, t -> s), so a network of two times returns
it as it returns x_0. Tensors in, tensors out; a time is one value per sample, [B].
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from latentddm.diffusion.process import bridge_step, expand_time
from latentddm.diffusion.sampling import SamplingStep, check_times


class FlowMap(Protocol):
    """g(x_t, t, s), [B, ...], for x_t [B, ...] and t, s [B]."""

    def __call__(self, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor: ...


def average_velocity(g: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """u = (x_t - g) / t, [B, ...], for t > 0."""
    return (x_t - g) / expand_time(t, x_t)


def move(x_t: Tensor, u: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """x_s = x_t - (t - s) u, [B, ...]."""
    return x_t - expand_time(t - s, x_t) * u


@torch.no_grad()
def sample_flow_map(
    flow_map: FlowMap,
    x: Tensor,
    times: Tensor,
    callback: Callable[[SamplingStep], None] | None = None,
) -> Tensor:
    """x at the last time from x [B, ...] at the first one, in len(times) - 1 network calls.

    times: strictly decreasing, in [0, 1]. No random number is drawn after x. ValueError for other
    times.
    """
    times = times.to(x.dtype)
    check_times(times)
    for step, (t, s) in enumerate(pairwise(times.to(x.device))):
        x_t, rows = x, len(x)
        g = flow_map(x_t, t.expand(rows), s.expand(rows))
        x = bridge_step(x_t, g, t, s, torch.zeros_like(x_t))
        if callback is not None:
            callback(SamplingStep(step, t, s, x_t, g, x))
    return x


def dyadic_times(steps: int) -> Tensor:
    """steps + 1 decreasing times from 1 to 0 in float64, all steps of two lengths, 1/2^k and half.

    For a map that has learnt steps of length 1/2^k from multiples of that length: 2^k steps are
    equal ones, and other numbers take the longer ones first. ValueError for no step.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}.")
    coarse = 2 ** (steps.bit_length() - 1)
    halved = steps - coarse  # of the coarse steps: the last ones
    long = torch.arange(coarse, halved, -1, dtype=torch.float64) / coarse
    short = torch.arange(2 * halved, -1, -1, dtype=torch.float64) / (2 * coarse)
    return torch.cat([long, short])
