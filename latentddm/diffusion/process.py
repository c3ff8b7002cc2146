"""The forward process and its bridge: corruption, posterior of a batch, predictions, churned step.

Time runs from t = 0 (data) to t = 1 (noise). Every function takes tensors and returns tensors;
a time is a scalar or one value per sample, [B].

Source: De Bortoli et al., "Distributional Diffusion Models with Scoring Rules", arXiv 2502.02483.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from latentddm.diffusion.schedules import FlowSchedule, Schedule

Prediction = Literal["x0", "eps", "v", "edm"]
_PREDICTIONS = ", ".join(get_args(Prediction))


def expand_time(t: Tensor | float, like: Tensor) -> Tensor:
    """Shape a time (scalar or [B]) so that it multiplies `like`, [B, ...]."""
    t = torch.as_tensor(t, dtype=like.dtype, device=like.device)
    return t.reshape(-1, *[1] * (like.ndim - 1)) if t.ndim else t


def corrupt(x0: Tensor, t: Tensor | float, noise: Tensor, schedule: Schedule) -> Tensor:
    """x_t = alpha_t x_0 + sigma_t eps (section 2 of the paper). x0, noise: [B, ...]."""
    t = expand_time(t, x0)
    return schedule.alpha(t) * x0 + schedule.sigma(t) * noise


def posterior_weights(
    x_t: Tensor, t: Tensor | float, data: Tensor, schedule: Schedule = FlowSchedule()
) -> Tensor:
    """p(x_0 = y_k | x_t) if x_0 is any of `data` [N, ...] with equal chance; [B, N], float64.

    softmax_k(-|x_t - alpha_t y_k|^2 / (2 sigma_t^2)), for t > 0. x_t: [B, ...]; t: scalar or [B].
    """
    x, y = x_t.flatten(1).double(), data.flatten(1).double()
    t = expand_time(t, x)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    # without |x|^2, which is the same for every y
    fit = alpha * (x @ y.T) - alpha**2 * y.square().sum(1) / 2
    return torch.softmax(fit / sigma**2, dim=1)


def draw_targets(
    x_t: Tensor, t: Tensor, batch: Tensor, uniform: Tensor, schedule: Schedule
) -> Tensor:
    """Other x_0 that may have led to each x_t, [B, n, C, H, W], drawn from its own batch.

    batch: the x_0 of all x_t of a step, [N, C, H, W], independent samples of the data; uniform: in
    [0, 1), [B, n]. Given x_t and the batch in any order, x_t was made from y_k with probability
    p(x_0 = y_k | x_t) among the batch; so a y_k drawn with it has, given x_t, exactly the
    distribution of x_0 (a Gibbs step), and the mean of a loss stays. The variance of the loss falls
    where many x_0 are plausible, near t = 1. Elsewhere all n are the x_0 that x_t was made from.
    """
    weights = posterior_weights(x_t, t, batch, schedule)  # [B, N]
    chosen = torch.searchsorted(weights.cumsum(1), uniform.to(weights))
    return batch[chosen.clamp_max(len(batch) - 1)]


def bridge_step(
    x_t: Tensor,
    x0: Tensor,
    t: Tensor | float,
    s: Tensor | float,
    noise: Tensor,
    schedule: Schedule = FlowSchedule(),
    churn: float = 0.0,
) -> Tensor:
    """Draw x_s ~ q(x_s | x_0, x_t) for s < t, with churn in [0, 1] (eq. 4 of the paper).

        rho = churn^2 r_11 + 1 - churn^2,   r_11 = (alpha_t sigma_s) / (alpha_s sigma_t)
        x_s = alpha_s x_0 + sigma_s (rho eps_t + sqrt(1 - rho^2) noise),
        eps_t = (x_t - alpha_t x_0) / sigma_t

    Equal to the paper's mu and Sigma, and safer in floating point. churn 0 is DDIM, churn 1 the
    DDPM posterior. Exact at t = 1 (alpha_t = 0) and at s = 0, where it returns x_0.
    x_t, x0, noise: [B, ...]; t, s: scalar or [B].
    """
    t, s = expand_time(t, x_t), expand_time(s, x_t)
    rho = _noise_correlation(t, s, schedule, churn)
    eps_t = (x_t - schedule.alpha(t) * x0) / schedule.sigma(t)
    fresh = (1 - rho**2).clamp_min(0).sqrt() * noise
    return schedule.alpha(s) * x0 + schedule.sigma(s) * (rho * eps_t + fresh)


def _noise_correlation(t: Tensor, s: Tensor, schedule: Schedule, churn: float) -> Tensor:
    """rho(s, t): the correlation of the noise in x_s with the noise in x_t.

    r_11 = (alpha_t / alpha_s) (sigma_s / sigma_t): ratios of sigma, not of its square.
    """
    r_11 = schedule.alpha(t) * schedule.sigma(s) / (schedule.alpha(s) * schedule.sigma(t))
    return churn**2 * r_11 + 1 - churn**2


def to_x0(
    output: Tensor,
    x_t: Tensor,
    t: Tensor | float,
    prediction: Prediction,
    schedule: Schedule,
    sigma_data: float = 1.0,
) -> Tensor:
    """x_0 from a network's output; the only place where predictions are converted.

    x0:  x_0 = output
    eps: x_0 = (x_t - sigma_t eps) / alpha_t     (undefined at t = 1; see `sampling.least_safety`)
    v:   x_0 = (x_t - sigma_t v) / (alpha_t + sigma_t),   v = eps - x_0, the velocity of the flow
    edm: x_0 = c_skip x_t - c_out F, see `edm_coefficients`; `sigma_data` is for it alone

    v is one thing for every schedule, and exact at both ends. The v of variance-preserving
    diffusion (arXiv 2202.00512), alpha_t eps - sigma_t x_0, is edm at sigma_data = 1.
    """
    t = expand_time(t, x_t)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    if prediction == "x0":
        return output
    if prediction == "eps":
        return (x_t - sigma * output) / alpha
    if prediction == "v":
        return (x_t - sigma * output) / (alpha + sigma)
    if prediction == "edm":
        skip, out = edm_coefficients(t, schedule, sigma_data)
        return skip * x_t - out * output
    raise ValueError(f"prediction must be one of {_PREDICTIONS}, not {prediction!r}.")


def from_x0(
    x0: Tensor,
    x_t: Tensor,
    t: Tensor | float,
    prediction: Prediction,
    schedule: Schedule,
    sigma_data: float = 1.0,
) -> Tensor:
    """The inverse of `to_x0`: the output that stands for x_0, for t > 0."""
    t = expand_time(t, x_t)
    if prediction == "x0":
        return x0
    eps = (x_t - schedule.alpha(t) * x0) / schedule.sigma(t)
    if prediction == "eps":
        return eps
    if prediction == "v":
        return eps - x0
    if prediction == "edm":
        skip, out = edm_coefficients(t, schedule, sigma_data)
        return (skip * x_t - x0) / out
    raise ValueError(f"prediction must be one of {_PREDICTIONS}, not {prediction!r}.")


def edm_coefficients(
    t: Tensor, schedule: Schedule, sigma_data: float = 1.0
) -> tuple[Tensor, Tensor]:
    """c_skip and c_out of EDM's preconditioning (arXiv 2206.00364, appendix B.6), in t's shape.

        c_skip = alpha_t sigma_data^2 / (alpha_t^2 sigma_data^2 + sigma_t^2)
        c_out^2 = E[(x_0 - c_skip x_t)^2] = (1 - alpha_t c_skip)^2 + sigma_t^2 c_skip^2

    c_out is for data of unit variance, so that the network's output F has unit variance too. At
    sigma_data = 1 c_skip is the least-squares factor for data with independent components. Latents
    have dependent ones: most of their variance lies in a few coarse directions, visible through
    much noise. With the standard deviation of the fine directions as sigma_data the network
    predicts x_0 itself until the noise is below that detail; only there x_t passes through.
    """
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    skip = alpha * sigma_data**2 / (alpha**2 * sigma_data**2 + sigma**2)
    return skip, ((1 - alpha * skip) ** 2 + (sigma * skip) ** 2).sqrt()
