"""Exact flow maps of known distributions on the flow schedule, in float64, without the package.

dx/dt = E[eps - x_0 | x_t]. For a Gaussian in closed form; for a mixture by the classical
Runge-Kutta method, whose error is far below the tolerances of the tests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from oracles import Mixture
from torch import Tensor


class ExactFlow(Protocol):
    def draw(self, count: int, generator: torch.Generator) -> Tensor: ...

    def mean(self, x_t: Tensor, t: Tensor) -> Tensor:
        """E[x_0 | x_t], [B, D]."""

    def arrive(self, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """x_s of the trajectory through x_t, [B, D]; t, s: [B]."""


@dataclass(frozen=True)
class GaussianFlow:
    """N(centre, variance I) in `dimension` dimensions."""

    centre: float = 1.5
    variance: float = 0.04
    dimension: int = 2

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        noise = torch.randn(count, self.dimension, generator=generator, dtype=torch.float64)
        return self.centre + self.variance**0.5 * noise

    def std(self, t: Tensor) -> Tensor:
        return ((1 - t) ** 2 * self.variance + t**2).sqrt()

    def mean(self, x_t: Tensor, t: Tensor) -> Tensor:
        t = t[:, None]
        gain = (1 - t) * self.variance / self.std(t) ** 2
        return self.centre + gain * (x_t - (1 - t) * self.centre)

    def arrive(self, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Every point keeps its standard score: the ODE of a Gaussian is linear."""
        t, s = t[:, None], s[:, None]
        score = (x_t - (1 - t) * self.centre) / self.std(t)
        return (1 - s) * self.centre + self.std(s) * score


@dataclass(frozen=True)
class MixtureFlow:
    """A mixture of Gaussians, integrated in `steps` steps."""

    mixture: Mixture
    steps: int

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        return self.mixture.draw(count, generator)

    def mean(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self.mixture.mean_denoiser(x_t, t, x_t)

    def arrive(self, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        h, x = (s - t) / self.steps, x_t
        for step in range(self.steps):
            at = t + step * h
            first = self._velocity(x, at)
            second = self._velocity(x + h[:, None] / 2 * first, at + h / 2)
            third = self._velocity(x + h[:, None] / 2 * second, at + h / 2)
            fourth = self._velocity(x + h[:, None] * third, at + h)
            x = x + h[:, None] / 6 * (first + 2 * second + 2 * third + fourth)
        return x

    def _velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """E[eps - x_0 | x_t] by components, finite at t = 0."""
        weights, means, _ = self.mixture.posterior(x, t)
        alpha, sigma = (level[:, None] for level in self.mixture.levels(t))
        total = alpha**2 * self.mixture.variances + sigma**2
        away = x[:, None] - alpha[..., None] * self.mixture.means
        eps = (sigma / total)[..., None] * away
        return (weights[..., None] * (eps - means)).sum(1)


def straight_end(flow: ExactFlow, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """x_t - t u(x_t, t, s), the form in which a network returns a flow map; at s = t the mean."""
    moved = s < t
    safe = torch.where(moved, s, 0.5 * t)
    u = (x_t - flow.arrive(x_t, t, safe)) / (t - safe)[:, None]
    return torch.where(moved[:, None], x_t - t[:, None] * u, flow.mean(x_t, t))
