"""Two distributions in the plane whose posteriors p(x_0 | x_t) are known exactly.

So the toy is a test: the draws of a trained model can be compared with the truth.
Everything is float64; x_t = (1 - t) x_0 + t eps, the schedule of `latentddm.FlowSchedule`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.special import log_ndtr, ndtr, ndtri

from latentddm.diffusion.schedules import FlowSchedule

SCHEDULE = FlowSchedule()


class Target(Protocol):
    """A distribution of points [N, 2] with its exact posterior."""

    @property
    def name(self) -> str:
        """Its name in tables and pictures."""

    @property
    def scale(self) -> float:
        """The standard deviation of one coordinate."""

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Independent points, [count, 2]."""

    def posterior(self, x_t: Tensor, t: Tensor, draws: int, generator: torch.Generator) -> Tensor:
        """Independent draws of x_0 given x_t, [B, draws, 2]. x_t: [B, 2]; t: [B], in (0, 1]."""


@dataclass(frozen=True)
class GaussianMixture:
    """The paper's target: two equal Gaussians of variance 1/4 at (3, 3) and (-3, -3)."""

    name: str = "mixture"
    centre: float = 3.0
    std: float = 0.5

    @property
    def scale(self) -> float:
        return (self.centre**2 + self.std**2) ** 0.5

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        component = torch.randint(2, (count,), generator=generator)
        return self._means()[component] + self.std * _normal((count, 2), generator)

    def posterior(self, x_t: Tensor, t: Tensor, draws: int, generator: torch.Generator) -> Tensor:
        # Each component's posterior is Gaussian: nu_k = mu_k + K (x_t - alpha mu_k), variance
        # S - alpha K S with K = alpha S / (alpha^2 S + sigma^2); its weight is the evidence of x_t.
        alpha, sigma, variance = SCHEDULE.alpha(t), SCHEDULE.sigma(t), self.std**2
        evidence = alpha**2 * variance + sigma**2
        gain = alpha * variance / evidence
        residual = x_t[:, None] - alpha[:, None, None] * self._means()  # [B, 2 components, 2]
        weights = torch.softmax(-residual.square().sum(2) / (2 * evidence[:, None]), dim=1)
        means = self._means() + gain[:, None, None] * residual
        component = torch.multinomial(weights, draws, replacement=True, generator=generator)
        centre = means.gather(1, component[..., None].expand(-1, -1, 2))
        std = ((1 - alpha * gain) * variance).sqrt()[:, None, None]
        return centre + std * _normal(centre.shape, generator)

    def _means(self) -> Tensor:
        return self.centre * torch.tensor([[1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)


@dataclass(frozen=True)
class Checkerboard:
    """Uniform on every other square of a `cells` x `cells` board over [-half_width, half_width]^2.

    Given x_t, x_0 is a Gaussian around x_t / alpha_t of standard deviation sigma_t / alpha_t, cut
    to the squares: a mixture over squares of products of truncated Gaussians.
    """

    name: str = "checkerboard"
    half_width: float = 1.0
    cells: int = 4

    @property
    def scale(self) -> float:
        return self.half_width / 3**0.5

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        squares = self._squares()
        chosen = squares[torch.randint(len(squares), (count,), generator=generator)]
        within = torch.rand(count, 2, generator=generator, dtype=torch.float64)
        return self._edges()[chosen] + within * (2 * self.half_width / self.cells)

    def posterior(self, x_t: Tensor, t: Tensor, draws: int, generator: torch.Generator) -> Tensor:
        # At t = 1 the Gaussian is flat; a width of 10,000 boards is flat to 1e-8.
        alpha = SCHEDULE.alpha(t).clamp_min(1e-4)
        centre, std = x_t / alpha[:, None], SCHEDULE.sigma(t) / alpha
        edges = (self._edges() - centre[..., None]) / std[:, None, None]  # [B, 2, cells + 1]
        lower, upper = edges[..., :-1], edges[..., 1:]
        # An interval right of the centre is mirrored: in the lower tail nothing cancels.
        mirrored = lower + upper > 0
        lower, upper = torch.where(mirrored, -upper, lower), torch.where(mirrored, -lower, upper)
        log_mass = log_ndtr(upper) + torch.log1p(-torch.exp(log_ndtr(lower) - log_ndtr(upper)))

        column, row = self._squares().T
        weights = torch.softmax(log_mass[:, 0, column] + log_mass[:, 1, row], dim=1)
        square = torch.multinomial(weights, draws, replacement=True, generator=generator)
        cell = torch.stack([column[square], row[square]], dim=1)  # [B, 2, draws]
        low, high = ndtr(lower).gather(2, cell), ndtr(upper).gather(2, cell)
        z = ndtri(low + (high - low) * torch.rand(low.shape, generator=generator, dtype=low.dtype))
        z = torch.where(mirrored.gather(2, cell), -z, z)
        x0 = centre[..., None] + std[:, None, None] * z
        # Rounding in the far tail must not leave the square.
        return x0.clamp(self._edges()[cell], self._edges()[cell + 1]).transpose(1, 2)

    def _edges(self) -> Tensor:
        width = self.half_width
        return torch.linspace(-width, width, self.cells + 1, dtype=torch.float64)

    def _squares(self) -> Tensor:
        """(column, row) of the squares that hold the mass, [cells^2 / 2, 2]."""
        pairs = torch.cartesian_prod(torch.arange(self.cells), torch.arange(self.cells))
        return pairs[pairs.sum(1) % 2 == 0]


def _normal(shape: tuple[int, ...] | torch.Size, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)
