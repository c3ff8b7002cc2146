"""The toy's network: x_0 in the plane, or a step of a flow map."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from toy2d_targets import SCHEDULE

from latentddm.diffusion.process import to_x0


class ToyDenoiser(nn.Module):
    """x_0 = G(t, x_t, xi), a residual network; as plain diffusion it has no input for xi.

    It predicts v = eps - x_0. The features of x_t and t are computed once for the m draws. For a
    flow map it reads the length of a step as well.
    """

    waves = (1, 2, 4)  # of x_0, in multiples of pi / 2 over the data's scale
    n_features = 2 + 1 + 2 * (2 * len(waves) + 4)  # see _features

    def __init__(
        self,
        scale: float,
        draws_from_noise: bool,
        width: int = 128,
        depth: int = 6,
        flow_map: str | None = None,
    ):
        super().__init__()
        self.flow_map = flow_map  # the steps to be learnt, "free" or "dyadic"
        self.scale = scale
        self.condition = nn.Linear(self.n_features, width)
        self.noise = nn.Linear(2, width, bias=False) if draws_from_noise else None
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(depth - 1))
        self.output = nn.Linear(width, 2)
        self.step = nn.Linear(9, width, bias=False) if flow_map else None

    def forward(
        self, x_t: Tensor, t: Tensor, xi: Tensor | None = None, s: Tensor | None = None
    ) -> Tensor:
        """Draws of x_0, [B, m, 2]. x_t: [B, 2]; t, s: [B]; xi: [B, m, 2], or None for one draw."""
        hidden = self.condition(self._features(x_t, t))[:, None]  # [B, 1, width]
        if self.step is not None:
            length = (torch.zeros_like(t) if s is None else t - s)[:, None]
            hidden = hidden + self.step(torch.cat([length, *_waves(length)], dim=1))[:, None]
        if self.noise is not None:
            hidden = hidden + self.noise(xi)  # [B, m, width]
        hidden = hidden.relu()
        for layer in self.hidden:
            hidden = hidden + layer(hidden).relu()
        return to_x0(self.output(hidden), x_t[:, None], t, "v", SCHEDULE)

    def denoise(self, x_t: Tensor, t: Tensor, xi: Tensor) -> Tensor:
        """One x_0 for each x_t, [B, 2]: a denoiser for `latentddm.sample`."""
        return self(x_t, t, xi[:, None])[:, 0]

    def step_to(self, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """The flow map g(x_t, t, s) of `latentddm.diffusion.flow_maps`, [B, 2]."""
        return self(x_t, t, None, s)[:, 0]

    def _features(self, x_t: Tensor, t: Tensor) -> Tensor:
        """x_t at unit variance, t, and waves of both: edges are hard to learn without them.

        The waves are the posterior means of waves of x_0 for Gaussian data: waves of the posterior
        mean, damped by the posterior variance. At little noise they show the place of x_0 on the
        board, at much noise nothing (integrated positional encoding, arXiv 2103.13415).
        """
        alpha, sigma, t = SCHEDULE.alpha(t)[:, None], SCHEDULE.sigma(t)[:, None], t[:, None]
        variance = alpha**2 * self.scale**2 + sigma**2  # of x_t
        mean = alpha * self.scale**2 / variance * x_t
        unknown = sigma**2 * self.scale**2 / variance
        of_x0 = [
            torch.exp(-(k**2) * unknown / 2) * wave(k * mean)
            for k in (math.pi / 2 / self.scale * n for n in self.waves)
            for wave in (torch.sin, torch.cos)
        ]
        return torch.cat([x_t / variance.sqrt(), t, *_waves(t), *of_x0], dim=1)


def _waves(t: Tensor) -> tuple[Tensor, Tensor]:
    """Sines and cosines of a time [B, 1], [B, 4] each."""
    angles = math.pi * torch.cat([k * t for k in (1, 2, 3, 4)], dim=1)
    return angles.sin(), angles.cos()
