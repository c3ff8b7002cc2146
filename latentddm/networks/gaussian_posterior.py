"""The posterior of Gaussian latents, in closed form: what a network need not learn.

Of latents ~ N(mu, U diag(l) U^T) the posterior p(x_0 | x_t) is normal along the same axes,

    mean:       mu + U diag(alpha_t l_k / (alpha_t^2 l_k + sigma_t^2)) U^T (x_t - alpha_t mu)
    variances:  v_k(t) = l_k sigma_t^2 / (alpha_t^2 l_k + sigma_t^2),   k = 1 ... D.

The mean is the best linear denoiser (the Wiener filter) of latents of any distribution. It depends
on all of x_t at once, and a network that has to find it needs long: so layers may read it beside
x_t (tools/results/gaussian-mean). `PosteriorNoise` has the covariance.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from latentddm.diffusion.process import expand_time
from latentddm.diffusion.schedules import Schedule

TINY = 1e-30  # of a variance: an axis without any has its mean at t = 0 too, not 0 / 0


class GaussianLatents(nn.Module):
    """The mean and the principal axes of latents, and the posterior that they have.

    The leading axes are kept, [D, K]; the others share the mean of their variances. All of it is
    set once by `fit`, and saved and exported with the weights.
    """

    mean: Tensor
    axes: Tensor
    variances: Tensor

    def __init__(self, shape: tuple[int, int, int], components: int) -> None:
        """shape: [C, H, W] of latents; components: K."""
        super().__init__()
        self.shape, self.dimension = shape, math.prod(shape)
        kept = min(components, self.dimension)
        # White until `fit`.
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("axes", torch.zeros(self.dimension, kept))
        self.register_buffer("variances", torch.ones(kept + 1))  # the last: mean of the others

    @torch.no_grad()
    def fit(self, mean: Tensor, axes: Tensor, variances: Tensor) -> None:
        """Take the mean [C, H, W] and the leading axes of latents.

        axes: [D, n], orthonormal; variances: [n], the largest first. Axes beyond n have none.
        """
        kept = min(len(self.variances) - 1, len(variances))
        others = self.dimension - kept
        self.mean.copy_(mean)
        self.axes.zero_()
        self.axes[:, :kept] = axes[:, :kept]
        self.variances.zero_()
        self.variances[:kept] = variances[:kept]
        self.variances[-1] = variances[kept:].sum() / others if others else 0.0

    def posterior_mean(self, x_t: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
        """E[x_0 | x_t] like x_t, [B, C, H, W], at t [B]."""
        alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
        total = (alpha**2 * self.variances + sigma**2).clamp_min(TINY)
        gains = alpha * self.variances / total
        mean = self.mean.to(x_t)
        return mean + self.along_axes(x_t - schedule.alpha(expand_time(t, x_t)) * mean, gains)

    def posterior_variances(self, t: Tensor, schedule: Schedule) -> Tensor:
        """v_k(t), [B, K + 1], at t [B]; the last is that of all other axes."""
        alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
        noise = self.variances * sigma**2
        return noise / (alpha**2 * self.variances + sigma**2).clamp_min(TINY)

    def mean_over_axes(self, values: Tensor) -> Tensor:
        """The mean over all D axes of values [B, K + 1], [B, 1]."""
        kept = values.shape[1] - 1
        total = values[:, :kept].sum(1) + (self.dimension - kept) * values[:, kept]
        return (total / self.dimension)[:, None]

    def components(self, x: Tensor) -> Tensor:
        """U^T x along the leading axes, [..., K]."""
        return x.flatten(-3) @ self.axes.to(x)

    def along_axes(self, x: Tensor, gains: Tensor, components: Tensor | None = None) -> Tensor:
        """U diag(gains) U^T x for x [B, ..., C, H, W] and gains [B, K + 1].

        components: those of x, where they are known.
        """
        components = self.components(x) if components is None else components
        gains = gains.to(x).reshape(len(gains), *[1] * (x.ndim - 4), -1)
        leading, others = gains[..., :-1], gains[..., -1:]
        along = ((leading - others) * components) @ self.axes.to(x).T
        return (others * x.flatten(-3) + along).unflatten(-1, self.shape)


class PosteriorNoise(nn.Module):
    """Noise of the posterior's covariance: coherent before any layer has learnt anything.

    U diag(sqrt v) U^T xi is added to the network's output, and the layers read the same divided by
    sqrt(mean v): white near data, the latents' own covariance at pure noise. Around a trained mean
    the draws are coherent before any training of theirs, which goes on from there; factors of the
    standard deviations are learnt from t and begin as 1. A network that reads white noise has to
    add up D independent numbers for each direction of large variance, and hardly does
    (tools/results/posterior-noise).
    """

    def __init__(self, components: int, width: int) -> None:
        """components: K of the `GaussianLatents`; width: of the embedding of t."""
        super().__init__()
        self.factors = nn.Linear(width, components + 1)
        nn.init.zeros_(self.factors.weight)
        nn.init.zeros_(self.factors.bias)

    def forward(
        self, xi: Tensor, t: Tensor, embedding: Tensor, latents: GaussianLatents, schedule: Schedule
    ) -> tuple[Tensor, Tensor]:
        """What the layers read, and what is added to x_0; both like xi, [B, ..., C, H, W].

        t: [B]; embedding: of t, [B, width].
        """
        variances = latents.posterior_variances(t, schedule)
        components = latents.components(xi)
        white = (variances / latents.mean_over_axes(variances)).sqrt()
        gains = (1 + self.factors(embedding)) * variances.sqrt()
        return (
            latents.along_axes(xi, white, components),
            latents.along_axes(xi, gains, components),
        )
