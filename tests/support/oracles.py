"""Known truths for the tests of the mathematics: Gaussian mixtures and what follows from them.

Nothing here uses the package: every formula is derived on its own, in float64, so that a test
that compares the two can fail.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from scipy.special import gamma, hyp1f1
from torch import Tensor

Levels = Callable[[Tensor], tuple[Tensor, Tensor]]  # t -> alpha, sigma


def flow_levels(t: Tensor) -> tuple[Tensor, Tensor]:
    """alpha = 1 - t, sigma = t."""
    return 1 - t, t


def cosine_levels(t: Tensor) -> tuple[Tensor, Tensor]:
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2)."""
    return torch.cos(math.pi / 2 * t), torch.sin(math.pi / 2 * t)


LEVELS: dict[str, Levels] = {"flow": flow_levels, "cosine": cosine_levels}


@dataclass(frozen=True)
class Mixture:
    """sum_k weights[k] N(means[k], variances[k] I). weights, variances: [K]; means: [K, D].

    levels: of the process x_t = alpha x_0 + sigma eps, whose posterior is asked for.
    """

    weights: Tensor
    means: Tensor
    variances: Tensor
    levels: Levels = flow_levels

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Independent samples, [count, D]."""
        component = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        noise = torch.randn(count, self.means.shape[1], generator=generator, dtype=self.means.dtype)
        return self.means[component] + self.variances[component, None].sqrt() * noise

    def posterior(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """p(x_0 | x_t) for x_t = alpha x_0 + sigma eps, by Gaussian conditioning of each component.

        x_t: [B, D]; t: [B]. Returns weights [B, K], means [B, K, D] and variances [B, K].
        """
        alpha, sigma = (level[:, None] for level in self.levels(t))
        total = alpha**2 * self.variances + sigma**2  # [B, K], of x_t in each component
        gain = alpha * self.variances / total
        away = x_t[:, None] - alpha[..., None] * self.means  # [B, K, D]
        dimension = x_t.shape[1]
        log_weights = (
            self.weights.log() - 0.5 * away.square().sum(2) / total - 0.5 * dimension * total.log()
        )
        means = self.means + gain[..., None] * away
        return log_weights.softmax(1), means, self.variances * (1 - alpha * gain)

    def mean_denoiser(self, x_t: Tensor, t: Tensor, xi: Tensor) -> Tensor:
        """E[x_0 | x_t], the minimiser of the loss of plain diffusion."""
        weights, means, _ = self.posterior(x_t, t)
        return (weights[..., None] * means).sum(1)


class PosteriorDenoiser:
    """Draws from p(x_0 | x_t): the component by a generator of its own, the Gaussian by xi."""

    def __init__(self, mixture: Mixture, seed: int) -> None:
        self.mixture = mixture
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, x_t: Tensor, t: Tensor, xi: Tensor) -> Tensor:
        weights, means, variances = self.mixture.posterior(x_t, t)
        component = torch.multinomial(weights, 1, generator=self.generator)  # [B, 1]
        mean = means.gather(1, component[..., None].expand(-1, -1, x_t.shape[1]))[:, 0]
        return mean + variances.gather(1, component).sqrt() * xi


def paper_target(levels: Levels = flow_levels) -> Mixture:
    """The two-dimensional target of the paper: half N((3, 3), .25 I), half N((-3, -3), .25 I)."""
    centre = torch.full((1, 2), 3.0, dtype=torch.float64)
    half = torch.full((2,), 0.5, dtype=torch.float64)
    return Mixture(half, torch.cat([centre, -centre]), half / 2, levels)


def gaussian(variance: float, dimension: int, levels: Levels = flow_levels) -> Mixture:
    """N(0, variance I)."""
    one = torch.ones(1, dtype=torch.float64)
    return Mixture(one, torch.zeros(1, dimension, dtype=torch.float64), variance * one, levels)


def gaussian_moment(shift: float, variance: float, dimension: int, beta: float) -> float:
    """E ||Z||^beta for Z ~ N(delta, variance I) with ||delta|| = shift (non-central chi)."""
    half = dimension / 2
    factor = (2 * variance) ** (beta / 2) * gamma(half + beta / 2) / gamma(half)
    return float(factor * hyp1f1(-beta / 2, half, -(shift**2) / (2 * variance)))


def mean_distance(p: Mixture, q: Mixture, beta: float) -> float:
    """E ||X - Y||^beta for independent X ~ p and Y ~ q, term by term."""
    total = 0.0
    for weight_p, mean_p, variance_p in zip(p.weights, p.means, p.variances, strict=True):
        for weight_q, mean_q, variance_q in zip(q.weights, q.means, q.variances, strict=True):
            shift, variance = float((mean_p - mean_q).norm()), float(variance_p + variance_q)
            moment = gaussian_moment(shift, variance, p.means.shape[1], beta)
            total += float(weight_p * weight_q) * moment
    return total


def expected_energy_score(p: Mixture, truth: Mixture, beta: float, lam: float) -> float:
    """The energy score of independent draws from p against targets from `truth`, on average."""
    return mean_distance(p, truth, beta) - lam / 2 * mean_distance(p, p, beta)


def energy_distance(p: Mixture, q: Mixture, beta: float) -> float:
    """2 E||X - Y||^beta - E||X - X'||^beta - E||Y - Y'||^beta; zero only if p = q."""
    return 2 * mean_distance(p, q, beta) - mean_distance(p, p, beta) - mean_distance(q, q, beta)


@dataclass(frozen=True)
class Discrepancy:
    """A squared MMD against a known target, and the standard error of its estimate."""

    value: float
    standard_error: float


def rbf_discrepancy(samples: Tensor, target: Mixture) -> Discrepancy:
    """Unbiased squared MMD (RBF, h = 1) of `samples` [N, D] against the mixture itself.

    The kernel is centred with the target's closed forms, so only the samples bring noise. The
    standard error is that of a U-statistic: its first-order term and its degenerate one.
    """
    count = len(samples)
    embedding = _rbf_embedding(samples, target)  # E_Y k(x, Y), [N]
    norm = _rbf_mean(target, target)
    half_square = samples.square().sum(1) / 2
    kernel = (samples @ samples.T).sub_(half_square[:, None]).sub_(half_square).exp_()
    kernel.sub_(embedding[:, None]).sub_(embedding).add_(norm).fill_diagonal_(0)
    value = float(kernel.sum()) / (count * (count - 1))
    first_order = 4 * float((kernel.sum(1) / (count - 1)).var()) / count
    degenerate = 2 * float(kernel.square().mean()) / count**2
    return Discrepancy(value, math.sqrt(first_order + degenerate))


def mixture_discrepancy(p: Mixture, q: Mixture) -> float:
    """Squared MMD (RBF, h = 1) between two mixtures, in closed form."""
    return _rbf_mean(p, p) - 2 * _rbf_mean(p, q) + _rbf_mean(q, q)


def _rbf_mean(p: Mixture, q: Mixture) -> float:
    """E k(X, Y) for independent X ~ p and Y ~ q."""
    return sum(
        float(weight * _rbf_embedding(mean[None], q, variance))
        for weight, mean, variance in zip(p.weights, p.means, p.variances, strict=True)
    )


def _rbf_embedding(points: Tensor, target: Mixture, variance: Tensor | float = 0.0) -> Tensor:
    """E k(X, Y) for X ~ N(point, variance I) and Y ~ target, h = 1; one value per point."""
    width = 1 + target.variances + variance  # [K]
    squared = torch.cdist(points, target.means).square()  # [N, K]
    peak = width ** (-points.shape[1] / 2)
    return (target.weights * peak * (-squared / (2 * width)).exp()).sum(1)


def mean_sampler_discrepancy(times: Sequence[float], levels: Levels = flow_levels) -> float:
    """Squared MMD (RBF, h = 1) of DDIM steps with the exact mean, for the paper's target.

    Along (1, 1) and across it the target, the noise and the mean are independent, so the kernel's
    expectations are products of one-dimensional ones, taken by quadrature over the start.
    """
    start = torch.linspace(-9, 9, 3001, dtype=torch.float64)
    mass = torch.softmax(-(start**2) / 2, 0)
    half = torch.full((2,), 0.5, dtype=torch.float64)
    modes = torch.tensor([[18**0.5], [-(18**0.5)]], dtype=torch.float64)
    along = Mixture(half, modes, half / 2, levels)
    across = Mixture(half, 0 * modes, half / 2, levels)
    own = cross = truth = 1.0
    for axis in (along, across):
        end = _ddim(axis, start, times)
        own *= float(mass @ (-0.5 * (end[:, None] - end).square()).exp() @ mass)
        cross *= float(mass @ _rbf_embedding(end[:, None], axis))
        truth *= _rbf_mean(axis, axis)
    return own - 2 * cross + truth


def _ddim(axis: Mixture, x: Tensor, times: Sequence[float]) -> Tensor:
    """x_s = alpha_s m + sigma_s (x - alpha_t m) / sigma_t, m = E[x_0 | x_t]; the last m is the end.

    For the flow these are Euler steps along dx/dt = (x - m) / t.
    """
    for t, s in pairwise(times):
        mean = axis.mean_denoiser(x[:, None], torch.full_like(x, t), x)[:, 0]
        (alpha_t, sigma_t), (alpha_s, sigma_s) = (
            axis.levels(torch.tensor(time, dtype=torch.float64)) for time in (t, s)
        )
        x = alpha_s * mean + sigma_s * (x - alpha_t * mean) / sigma_t
    return mean
