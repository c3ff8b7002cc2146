"""Noise with the covariance that a posterior has: coherent before any layer has learnt anything."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from latentddm.diffusion.schedules import Schedule


class PosteriorNoise(nn.Module):
    """The posterior noise of Gaussian latents: what xi adds to x_0, and xi as the layers read it.

    Of latents ~ N(mu, U diag(l) U^T) the posterior p(x_0 | x_t) is normal along the same axes,

        v_k(t) = l_k sigma_t^2 / (alpha_t^2 l_k + sigma_t^2),   k = 1 ... D,

    whatever x_t. So U diag(sqrt v) U^T xi is added to the network's output, and the layers read the
    same divided by sqrt(mean v): white near data, the latents' own covariance at pure noise.
    Around a trained mean the draws are coherent before any training of theirs, which goes on from
    there; factors of the standard deviations are learnt from t and begin as 1. A network that reads
    white noise has to add up D independent numbers for each direction of large variance, and hardly
    does (tools/results/posterior-noise).

    The leading axes are kept, [D, K]; the others share the mean of their variances. They are set
    once by `fit`, and saved and exported with the weights.
    """

    axes: Tensor
    variances: Tensor

    def __init__(self, shape: tuple[int, int, int], components: int, width: int) -> None:
        """shape: [C, H, W] of latents; components: K; width: of the embedding of t."""
        super().__init__()
        self.shape, self.dimension = shape, math.prod(shape)
        kept = min(components, self.dimension)
        # White until `fit`.
        self.register_buffer("axes", torch.zeros(self.dimension, kept))
        self.register_buffer("variances", torch.ones(kept + 1))  # the last: mean of the others
        self.factors = nn.Linear(width, kept + 1)
        nn.init.zeros_(self.factors.weight)
        nn.init.zeros_(self.factors.bias)

    @torch.no_grad()
    def fit(self, axes: Tensor, variances: Tensor) -> None:
        """Take the leading axes of latents; axes: [D, n], orthonormal; variances: [n], the largest
        first. Axes beyond n have no variance.
        """
        kept = min(len(self.variances) - 1, len(variances))
        others = self.dimension - kept
        self.axes.zero_()
        self.axes[:, :kept] = axes[:, :kept]
        self.variances.zero_()
        self.variances[:kept] = variances[:kept]
        self.variances[-1] = variances[kept:].sum() / others if others else 0.0

    def forward(
        self, xi: Tensor, t: Tensor, embedding: Tensor, schedule: Schedule
    ) -> tuple[Tensor, Tensor]:
        """What the layers read, and what is added to x_0; both like xi, [B, ..., C, H, W].

        t: [B]; embedding: of t, [B, width].
        """
        variances = self.posterior_variances(t, schedule)
        components = xi.flatten(-3) @ self.axes.to(xi)
        read = self._coloured(xi, components, (variances / self._mean(variances)).sqrt())
        gains = (1 + self.factors(embedding)) * variances.sqrt()
        return read, self._coloured(xi, components, gains)

    def posterior_variances(self, t: Tensor, schedule: Schedule) -> Tensor:
        """v_k(t), [B, K + 1], at t [B]; the last is that of all other axes."""
        alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
        noise = self.variances * sigma**2
        return noise / (alpha**2 * self.variances + sigma**2)

    def _mean(self, values: Tensor) -> Tensor:
        """The mean over all D axes of values [B, K + 1], [B, 1]."""
        kept = values.shape[1] - 1
        total = values[:, :kept].sum(1) + (self.dimension - kept) * values[:, kept]
        return (total / self.dimension)[:, None]

    def _coloured(self, xi: Tensor, components: Tensor, gains: Tensor) -> Tensor:
        """U diag(gains) U^T xi, for U^T xi [B, ..., K] and gains [B, K + 1]."""
        gains = gains.to(xi).reshape(len(gains), *[1] * (xi.ndim - 4), -1)
        leading, others = gains[..., :-1], gains[..., -1:]
        along = ((leading - others) * components) @ self.axes.to(xi).T
        return (others * xi.flatten(-3) + along).unflatten(-1, self.shape)
