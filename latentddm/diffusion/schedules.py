"""Noise schedules: alpha_t and sigma_t of x_t = alpha_t x_0 + sigma_t eps.

t = 0 is data, t = 1 is noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class FlowSchedule:
    """The linear (flow-matching) schedule: alpha_t = 1 - t, sigma_t = t."""

    def alpha(self, t: Tensor) -> Tensor:
        """The factor of the data in x_t; 1 at t = 0, 0 at t = 1."""
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        """The standard deviation of the noise in x_t; 0 at t = 0, 1 at t = 1."""
        return t

    def log_snr(self, t: Tensor) -> Tensor:
        """log(alpha_t^2 / sigma_t^2); +inf at t = 0, -inf at t = 1."""
        return 2 * (self.alpha(t).log() - self.sigma(t).log())

    def time_at(self, log_snr: Tensor) -> Tensor:
        """The inverse of `log_snr`: t = 1 / (1 + exp(log_snr / 2))."""
        return torch.sigmoid(-log_snr / 2)
