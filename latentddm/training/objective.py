"""The training objective: which times, which score, which weight; plain diffusion is one setting.

Confinement and interaction come from `scoring`, the corruption from `process`; nothing here knows
a network, a trainer or a file. Losses are returned per sample, [B]; the trainer averages.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from latentddm.diffusion.process import draw_targets
from latentddm.diffusion.schedules import FlowSchedule
from latentddm.scores import EnergyConfig

__all__ = ["Objective", "ObjectiveTerms", "draw_targets", "objective_terms"]


@dataclass(frozen=True, kw_only=True)
class Objective:
    """The numbers that make a loss. Plain diffusion is `Objective.plain_diffusion()`."""

    draws: int = 4  # m, the draws of x_0 for each x_t
    antithetic: bool = False  # half of them from xi, half from -xi: less noise, same mean
    targets: int = 1  # what they are held against: x_0 alone, or so many of `draw_targets`
    beta: float = 1.0  # the exponent at pure noise
    beta_data: float | None = None  # the exponent at data; None: the same at every time
    lam: float = 1.0  # lambda at pure noise
    lam_data: float | None = None  # lambda at data; None: the same at every time
    position_share: float = 0.5  # of the per-position norm; the rest is the global norm
    weighting_bias: float | None = None  # b of the sigmoid weighting; None: weight 1
    time_sampling: Literal["uniform", "logit_normal"] = "logit_normal"
    time_mean: float = 0.0  # of the logit-normal; > 0 leans towards noise
    time_std: float = 1.0
    grid_share: float = 0.0  # of the times are k / grid_steps: those at which few steps are taken
    grid_steps: int = 8

    def __post_init__(self) -> None:
        """ValueError names a number that makes no loss."""
        exponents = {"beta": self.beta, "beta_data": self.beta_data}
        shares = {
            "lam": self.lam,
            "lam_data": self.lam_data,
            "position_share": self.position_share,
            "grid_share": self.grid_share,
        }
        for name, value in exponents.items():
            if value is not None and not 0 < value <= 2:
                raise ValueError(f"{name} must lie in (0, 2], not {value}")
        for name, value in shares.items():
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} must lie in [0, 1], not {value}")
        if self.targets < 1:
            raise ValueError(f"targets must be at least 1, not {self.targets}")
        if self.grid_steps < 1:
            raise ValueError(f"grid_steps must be at least 1, not {self.grid_steps}")
        if self.draws < 1 or (self.draws == 1 and (self.lam > 0 or self.lam_data)):
            raise ValueError(
                f"draws is {self.draws}; an interaction (lam > 0) needs two or more, none needs one"
            )
        if self.antithetic and (self.draws < 4 or self.draws % 2):
            raise ValueError(
                f"draws is {self.draws}; antithetic pairs need an even number of 4 or more"
            )

    @staticmethod
    def plain_diffusion(**changes: object) -> Objective:
        """The squared error on the mean: beta 2, lambda 0, one draw."""
        return Objective(**({"draws": 1, "beta": 2.0, "lam": 0.0, "position_share": 0.0} | changes))  # type: ignore[arg-type]

    def beta_at(self, t: Tensor) -> Tensor | float:
        """beta(t), [B], linear from `beta_data` at t = 0 to `beta` at t = 1 (iDDM), or a number."""
        return _linear(self.beta_data, self.beta, t)

    def lam_at(self, t: Tensor) -> Tensor | float:
        """lambda(t), likewise, from `lam_data` to `lam`."""
        return _linear(self.lam_data, self.lam, t)

    def weight(self, t: Tensor, schedule: FlowSchedule) -> Tensor:
        """w_t = sigmoid(log SNR - b), [B] (section 3 of the paper)."""
        if self.weighting_bias is None:
            return torch.ones_like(t)
        return torch.sigmoid(schedule.log_snr(t) - self.weighting_bias)

    def times(self, noise: Tensor) -> Tensor:
        """Training times in (0, 1) from standard normal `noise`, [B].

        uniform: t = Phi(z); logit-normal: t = sigmoid(mean + std z). A share of them is taken from
        1 / k, 2 / k, ..., 1 instead, k = grid_steps, each as often: a sampler of 1, 2, ... k steps
        asks for no others.
        """
        if self.grid_share == 0:
            t = self._times_off_grid(noise)
        else:
            # Phi(z) is uniform: below the share it chooses a time of the grid, and what is above it
            # is stretched over (0, 1) again, so that one number a sample is enough.
            uniform, tiny = torch.special.ndtr(noise), torch.finfo(noise.dtype).eps
            on_grid = (uniform / self.grid_share * self.grid_steps).ceil().clamp_min(1)
            rest = (uniform - self.grid_share) / max(1 - self.grid_share, tiny)
            t = torch.where(
                uniform < self.grid_share,
                on_grid / self.grid_steps,
                self._times_off_grid(torch.special.ndtri(rest.clamp(tiny, 1 - tiny))),
            )
        return t.clamp(TIME_MARGIN, 1 - TIME_MARGIN)

    def _times_off_grid(self, noise: Tensor) -> Tensor:
        if self.time_sampling == "uniform":
            return torch.special.ndtr(noise)
        return torch.sigmoid(self.time_mean + self.time_std * noise)


TIME_MARGIN = 1e-4  # training never sees t = 0 or 1 exactly, where log SNR is infinite


class ObjectiveTerms(NamedTuple):
    """The loss and what must always be watched, each [B] and, but for the loss, detached."""

    loss: Tensor
    confinement: Tensor
    interaction: Tensor  # near zero: the network ignores xi
    spread: Tensor  # standard deviation of the draws, root mean square over the sample


def objective_terms(
    draws: Tensor, x0: Tensor, t: Tensor, objective: Objective, schedule: FlowSchedule
) -> ObjectiveTerms:
    """The weighted score of the draws against the data (eq. 14 of the paper), [B].

    draws: [B, m, C, H, W]; x0: [B, C, H, W], or targets in its place, [B, n, C, H, W]; t: [B].
    Norms are divided by their dimension, so that the loss has one scale for every size; the score
    is computed in float32 or better.
    """
    dtype = torch.promote_types(draws.dtype, torch.float32)
    draws, x0, t = draws.to(dtype), x0.to(dtype), t.to(dtype)
    share = objective.position_share
    score = EnergyConfig(
        beta=objective.beta,
        beta_data=objective.beta_data,
        lam=objective.lam,
        lam_data=objective.lam_data,
        views={"whole": 1 - share, "position": share},
    ).make()
    terms = score(draws, x0, t, objective.antithetic)
    independent = draws[:, : draws.shape[1] // 2] if objective.antithetic else draws
    return ObjectiveTerms(
        objective.weight(t, schedule) * terms.score(score.lam_at(t)),
        terms.confinement.detach(),
        terms.interaction.detach(),
        _spread(independent.detach()),
    )


def _linear(at_data: float | None, at_noise: float, t: Tensor) -> Tensor | float:
    return at_noise if at_data is None else at_data + (at_noise - at_data) * t


def _spread(draws: Tensor) -> Tensor:
    """The standard deviation of the draws, root mean square over the sample, [B]."""
    m = draws.shape[1]
    if m == 1:
        return torch.zeros_like(draws[:, 0].flatten(1)[:, 0])
    # draws.var(dim=1) is ten times slower.
    apart = draws - draws.mean(dim=1, keepdim=True)
    return (apart.square().flatten(1).mean(1) * (m / (m - 1))).sqrt()
