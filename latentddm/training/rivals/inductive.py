"""Inductive moment matching: samples that arrive at s from t match those that arrive from r < t.

With labels the joint distributions of samples and labels match, hence those given each label.
Source: Zhou, Ermon, Song, "Inductive Moment Matching", arXiv 2503.07565.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from latentddm.diffusion.flow_maps import move
from latentddm.diffusion.process import corrupt
from latentddm.diffusion.schedules import Schedule
from latentddm.training.objective import ObjectiveTerms
from latentddm.training.protocols import Evaluator, RandomNumbers
from latentddm.training.rivals.flow_map import FlowMapObjective, flow_map_terms, velocity_of

LARGEST_ETA = 160.0  # of eta = sigma / alpha, from which r is counted (its value in the paper)
SHORTEST = 1e-8  # distance of two samples: below it the gradient is 0
LEAST = 1e-6  # s, and t - s: the velocity at s and the kernel divide by them


def nearer_time(t: Tensor, s: Tensor, eta_step: float) -> Tensor:
    """r(s, t) = max(s, eta^-1(eta_t - eta_step)), eta_t = t / (1 - t), [B] (section 4.1).

    Above LARGEST_ETA it counts from there: all that is noise arrives from one time.
    """
    largest = LARGEST_ETA / (1 + LARGEST_ETA)
    inside = t.clamp_max(largest)
    eta = (inside / (1 - inside) - eta_step).clamp_min(0)
    return torch.maximum(s, eta / (1 + eta)).minimum(t)


def laplace_kernel(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    """exp(-max(||x_j - y_k||, 1e-8) / (scale D)), [G, M, M], for x, y [G, M, D] and scale [G].

    Section 4.2 of the paper; its w~(s, t) = 1 / c_out is 1 / scale.
    """
    squares = (x[:, :, None] - y[:, None]).square().sum(3)
    distances = squares.clamp_min(SHORTEST**2).sqrt()
    return torch.exp(-distances / (x.shape[2] * scale[:, None, None]))


def group_discrepancy(arrived: Tensor, target: Tensor, scale: Tensor, labels: Tensor) -> Tensor:
    """Squared MMD of two sets of M samples, all pairs of a set with itself among them, [G].

    1/M^2 sum_jk [c_j = c_k] (k(y_j, y_k) + k(y'_j, y'_k) - 2 k(y_j, y'_k)): section 4.2 of the
    paper, with labels c [G, M] of both sets. k times the indicator is a kernel of pairs (y, c), and
    characteristic where k is: the MMD is 0 where y and y' have one distribution given each label,
    and samples of other labels do not act on each other. The pairs j = k of y and y', two arrivals
    from one x_0 and eps, are a consistency model's (its M = 1): at the optimum they leave
    2/M E[1 - k], which falls to 0 with t - r.
    """
    within = laplace_kernel(arrived, arrived, scale) + laplace_kernel(target, target, scale)
    terms = within - 2 * laplace_kernel(arrived, target, scale)
    return (terms * (labels[:, :, None] == labels[:, None])).mean((1, 2))


@dataclass(frozen=True, kw_only=True)
class InductiveObjective(FlowMapObjective):
    """Inductive moment matching: groups of samples share (s, t), and are compared as sets.

    A step is of its Euler parametrisation on the flow, c_out = t - s.
    """

    kind: Literal["moment_matching_inductive"] = "moment_matching_inductive"
    flow_map: Literal["free"] = "free"
    time_sampling: Literal["uniform", "logit_normal"] = "uniform"
    weighting_bias: float | None = 5.0  # b of the weight below; None: weight 1
    weighting_power: float = 1.0  # a of it
    group: int = 4  # M
    decrement: int = 12  # k: eta at r is 160 / 2^k below eta at t

    def __post_init__(self) -> None:
        """ValueError names a setting out of range."""
        super().__post_init__()
        if self.group < 2:
            raise ValueError(f"group must be at least 2, not {self.group}")
        if self.decrement < 0:
            raise ValueError(f"decrement must be at least 0, not {self.decrement}")

    def weight(self, t: Tensor, schedule: Schedule) -> Tensor:
        """1/2 sigmoid(b - lambda) (-dlambda/dt) alpha^a / (alpha^2 + sigma^2), [B] (section 4.2).

        lambda = log SNR, whose derivative on the flow is -2 / (t (1 - t)).
        """
        if self.weighting_bias is None:
            return torch.ones_like(t)
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        falling = torch.sigmoid(self.weighting_bias - schedule.log_snr(t)) / (alpha * sigma)
        return falling * alpha**self.weighting_power / (alpha**2 + sigma**2)

    def numbers(self, random: RandomNumbers, x0: Tensor) -> dict[str, Tensor]:
        """t, s and noise; s is uniform below t, and both are those of the first of a group."""
        t, noise = self.times(random.normal()), random.normal(*x0.shape[1:])
        times = torch.stack([t, (random.uniform() * t).clamp_min(LEAST)], dim=1)
        t, s = times[:: self.group].repeat_interleave(self.group, dim=0).unbind(1)
        return {"t": t, "s": s, "noise": noise}

    def evaluate(
        self,
        network: Evaluator,
        x0: Tensor,
        numbers: Mapping[str, Tensor],
        global_x0: Tensor,
        schedule: Schedule,
    ) -> ObjectiveTerms:
        """w MMD^2 of the samples of a group that arrive from t and from r, [B].

        Without `labels` among the numbers all samples have one.
        """
        t, s, noise = numbers["t"], numbers["s"], numbers["noise"]
        r = nearer_time(t, s, LARGEST_ETA / 2**self.decrement)
        x_t, x_r = (corrupt(x0, time, noise, schedule) for time in (t, r))
        arrived = move(x_t, velocity_of(network.with_gradient, x_t, t, s), t, s)
        with torch.no_grad():
            target = move(x_r, velocity_of(network.current, x_r, r, s), r, s)
        y, y_r = (y.flatten(1).unflatten(0, (-1, self.group)) for y in (arrived, target))
        scale = (t - s)[:: self.group].clamp_min(LEAST)
        labels = numbers.get("labels", torch.zeros_like(t)).unflatten(0, (-1, self.group))
        error = group_discrepancy(y, y_r, scale, labels).repeat_interleave(self.group)
        return flow_map_terms(self.weight(t, schedule) * error, error)
