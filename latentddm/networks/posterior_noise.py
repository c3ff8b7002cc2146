"""xi with the covariance that a posterior has: coherent over the whole sample before any layer."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from latentddm.diffusion.schedules import Schedule


class PosteriorNoise(nn.Module):
    """xi ~ N(0, I) to noise with the covariance of p(x_0 | x_t) of Gaussian latents, over its mean.

    Of latents ~ N(mu, U diag(l) U^T) the posterior is normal along the same axes, whatever x_t:

        v_k(t) = l_k sigma_t^2 / (alpha_t^2 l_k + sigma_t^2),   k = 1 ... D

    and xi becomes U diag(sqrt(v_k / mean v)) U^T xi: white near data, the latents' own covariance
    at pure noise. A linear, invertible map of xi, so nothing is assumed of the draws; but a network
    fed white noise has to learn from the score which numbers vary together, and in D dimensions
    that has a weight of 1 / D in it (tools/results/coloured-noise).

    The leading axes are kept, [D, K]; the others share the mean of their variances. They are a part
    of the network's state: set once by `fit`, saved and exported with the weights.
    """

    axes: Tensor
    variances: Tensor

    def __init__(self, shape: tuple[int, int, int], components: int) -> None:
        super().__init__()
        self.shape, self.dimension = shape, math.prod(shape)
        kept = min(components, self.dimension)
        # White until `fit`.
        self.register_buffer("axes", torch.zeros(self.dimension, kept))
        self.register_buffer("variances", torch.ones(kept + 1))  # the last: mean of the others

    @torch.no_grad()
    def fit(self, axes: Tensor, variances: Tensor) -> None:
        """Take the leading axes of latents; axes: [D, n], orthonormal; variances: [n], the largest
        first. Axes beyond n have no variance.
        """
        kept = min(len(self.variances) - 1, len(variances))
        others = self.dimension - kept
        self.axes.zero_()
        self.axes[:, :kept] = axes[:, :kept]
        self.variances[:kept] = variances[:kept]
        self.variances[kept:] = variances[kept:].sum() / others if others else 0.0

    def forward(self, xi: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
        """[B, ..., C, H, W] of xi of that shape, at t [B]."""
        gains = self.gains(t, schedule).to(xi)
        gains = gains.reshape(len(t), *[1] * (xi.ndim - 4), -1)  # [B, ..., K + 1]
        flat, axes = xi.flatten(-3), self.axes.to(xi)
        leading, others = gains[..., :-1], gains[..., -1:]
        coloured = others * flat + ((leading - others) * (flat @ axes)) @ axes.T
        return coloured.unflatten(-1, self.shape)

    def gains(self, t: Tensor, schedule: Schedule) -> Tensor:
        """sqrt(v_k / mean v), [B, K + 1], at t [B]; the last is that of all other axes."""
        alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
        spread = self.variances * sigma**2
        posterior = spread / (alpha**2 * self.variances + sigma**2)
        kept = len(self.variances) - 1
        counts = torch.ones_like(self.variances)
        counts[-1] = self.dimension - kept
        return (posterior / ((posterior @ counts) / self.dimension)[:, None]).sqrt()
