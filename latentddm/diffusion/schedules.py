"""Noise schedules: alpha_t and sigma_t of x_t = alpha_t x_0 + sigma_t eps.

t = 0 is data, t = 1 is noise. One more schedule is a class like these and a line in SCHEDULES.

All schedules are one process on different clocks: divided by alpha_t + sigma_t, x_t has the
distribution of the flow schedule at the time of equal SNR (`flow_time`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Schedule(Protocol):
    """alpha and sigma of a time t in [0, 1]; tensors in, tensors of the same shape and type out.

    alpha falls from 1 to 0 and sigma rises from 0 to 1, exactly so at both ends; log SNR is
    strictly decreasing.
    """

    @property
    def name(self) -> str:
        """The key in SCHEDULES, and in configs."""

    def alpha(self, t: Tensor) -> Tensor:
        """The factor of the data in x_t."""

    def sigma(self, t: Tensor) -> Tensor:
        """The standard deviation of the noise in x_t."""

    def log_snr(self, t: Tensor) -> Tensor:
        """log(alpha_t^2 / sigma_t^2); +inf at t = 0, -inf at t = 1."""

    def time_at(self, log_snr: Tensor) -> Tensor:
        """The inverse of `log_snr`."""


@dataclass(frozen=True)
class FlowSchedule:
    """The linear (flow-matching) schedule: alpha_t = 1 - t, sigma_t = t."""

    name = "flow"

    def alpha(self, t: Tensor) -> Tensor:
        """1 - t."""
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        """t."""
        return t

    def log_snr(self, t: Tensor) -> Tensor:
        """2 log((1 - t) / t)."""
        return 2 * (self.alpha(t).log() - self.sigma(t).log())

    def time_at(self, log_snr: Tensor) -> Tensor:
        """t = 1 / (1 + exp(log_snr / 2))."""
        return torch.sigmoid(-log_snr / 2)


@dataclass(frozen=True)
class CosineSchedule:
    """The cosine schedule, variance preserving: alpha_t = cos(pi t / 2), sigma_t = sin(pi t / 2).

    That of Nichol and Dhariwal (arXiv 2102.09672) without its offset at t = 0.
    """

    name = "cosine"

    def alpha(self, t: Tensor) -> Tensor:
        """cos(pi t / 2), written sin(pi (1 - t) / 2): exactly 0 at t = 1."""
        return torch.sin(math.pi / 2 * (1 - t))

    def sigma(self, t: Tensor) -> Tensor:
        """sin(pi t / 2)."""
        return torch.sin(math.pi / 2 * t)

    def log_snr(self, t: Tensor) -> Tensor:
        """-2 log tan(pi t / 2)."""
        return 2 * (self.alpha(t).log() - self.sigma(t).log())

    def time_at(self, log_snr: Tensor) -> Tensor:
        """t = 2 / pi arctan(exp(-log_snr / 2))."""
        return torch.atan(torch.exp(-log_snr / 2)) / (math.pi / 2)


SCHEDULES: dict[str, type[Schedule]] = {
    "flow": FlowSchedule,
    "cosine": CosineSchedule,
}


def make_schedule(name: str) -> Schedule:
    """The schedule of a name in SCHEDULES; ValueError for another name."""
    if name not in SCHEDULES:
        raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, not {name!r}.")
    return SCHEDULES[name]()


def flow_time(t: Tensor, schedule: Schedule) -> Tensor:
    """sigma_t / (alpha_t + sigma_t): the time of the flow schedule with the SNR of t."""
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    return sigma / (alpha + sigma)


def time_of_flow(flow_t: Tensor | float, schedule: Schedule) -> Tensor:
    """The inverse of `flow_time`, in float64."""
    return schedule.time_at(FlowSchedule().log_snr(torch.as_tensor(flow_t, dtype=torch.float64)))
