"""Training objectives: the times, the weight and the loss of one phase.

A score comes from `scores`, the corruption from `diffusion`; nothing here imports a trainer or a
file, and of the networks only their settings. Losses are returned per sample, [B]; the trainer
averages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from latentddm.diffusion.process import corrupt, draw_targets
from latentddm.diffusion.schedules import Schedule
from latentddm.networks.config import NetworkConfig
from latentddm.scores import EnergyConfig, Score, ScoreConfig
from latentddm.scores.score import antithetic_pairs
from latentddm.scores.views import ViewInputs
from latentddm.training.protocols import Evaluator, RandomNumbers
from latentddm.training.times import partly_on_grid

TIME_MARGIN = 1e-4  # training never sees t = 0 or 1 exactly, where log SNR is infinite


class ObjectiveTerms(NamedTuple):
    """The loss and the figures that are always logged: each [B] and, but for the loss, detached."""

    loss: Tensor
    confinement: Tensor
    interaction: Tensor  # near zero: the network ignores xi
    spread: Tensor  # standard deviation of the draws, root mean square over the sample


def mean_square(difference: Tensor) -> Tensor:
    """||difference||^2 / D, [B]."""
    return difference.square().flatten(1).mean(1)


@dataclass(frozen=True, kw_only=True)
class Objective:
    """The part that all objectives share: training times and their weight.

    `kind` chooses one of OBJECTIVES.
    """

    derivatives: ClassVar[bool] = False  # whether it takes derivatives of the network by its inputs

    kind: str
    targets: int = 1  # for each x_t: x_0 alone, or so many of `process.draw_targets`
    weighting_bias: float | None = None  # b of the sigmoid weighting; None: weight 1
    time_sampling: Literal["uniform", "logit_normal"] = "logit_normal"
    time_mean: float = 0.0  # of the logit-normal; > 0 leans towards noise
    time_std: float = 1.0
    grid_share: float = 0.0  # of the times are k / grid_steps: those at which few steps are taken
    grid_steps: int = 8

    @staticmethod
    def kinds() -> Mapping[str, type[Objective]]:
        return OBJECTIVES

    def __post_init__(self) -> None:
        """ValueError names a setting out of range."""
        if not 0 <= self.grid_share <= 1:
            raise ValueError(f"grid_share must lie in [0, 1], not {self.grid_share}")
        if self.grid_steps < 1:
            raise ValueError(f"grid_steps must be at least 1, not {self.grid_steps}")
        if self.targets < 1:
            raise ValueError(f"targets must be at least 1, not {self.targets}")

    @property
    def draw_count(self) -> int:
        """Draws of x_0 for each x_t, the field `draws`; 0: of the mean, evaluated without xi."""
        return int(getattr(self, "draws", 0))

    @property
    def group_size(self) -> int:
        """Samples beside each other that are compared: the field `group`, or 1."""
        return int(getattr(self, "group", 1))

    @property
    def learns_flow_map(self) -> bool:
        """Whether samples follow a flow map: there is a field `flow_map`, which names its steps."""
        return hasattr(self, "flow_map")

    def check_network(self, network: NetworkConfig, schedule: str) -> None:
        """ValueError, naming the setting to change, if a network or a schedule does not fit."""

    def check_latents(self, shape: Sequence[int]) -> None:
        """ValueError, naming the setting to change, if latents [C, H, W] do not fit."""

    def check_micro_batch(self, images: int) -> None:
        """ValueError, naming the setting to change, if micro-batches of so many do not fit."""
        if images % self.group_size:
            raise ValueError(f"group is {self.group_size}, of which {images} is no multiple")

    def resolved(self) -> Objective:
        """The same with nothing left open: what a run keeps of it."""
        return self

    def prepared(self, inputs: ViewInputs) -> Objective:
        """The objective of one training, its parts made from the training's `inputs`."""
        return self

    def xi(self, normal: Callable[..., Tensor], shape: Sequence[int]) -> Tensor | None:
        """xi [B, m, *shape] from `normal(m, *shape)`; None for an objective of the mean."""
        return None

    def numbers(self, random: RandomNumbers, x0: Tensor) -> dict[str, Tensor]:
        """All random numbers of a step by name, a row for each of the samples x0 [B, C, H, W]."""
        numbers = {"t": self.times(random.normal()), "noise": random.normal(*x0.shape[1:])}
        xi = self.xi(random.normal, x0.shape[1:])
        if xi is not None:
            numbers["xi"] = xi
        return numbers | {"uniform": random.uniform(self.targets)}

    def evaluate(
        self,
        network: Evaluator,
        x0: Tensor,
        numbers: Mapping[str, Tensor],
        global_x0: Tensor,
        schedule: Schedule,
    ) -> ObjectiveTerms:
        """The loss of a micro-batch: corrupt the data, evaluate the network once, `terms`.

        numbers: the rows of `numbers`, and `labels`, those given to a network with classes;
        global_x0: the x_0 of all processes, for several targets.
        """
        t, targets = numbers["t"], x0
        x_t = corrupt(x0, t, numbers["noise"], schedule)
        drawn = network.with_gradient(x_t, t, numbers.get("xi"))
        if self.targets > 1:
            targets = draw_targets(x_t, t, global_x0, numbers["uniform"], schedule)
        return self.terms(drawn, targets, t, schedule)

    def terms(self, drawn: Tensor, x0: Tensor, t: Tensor, schedule: Schedule) -> ObjectiveTerms:
        """The loss of a network's output. t: [B]."""
        raise NotImplementedError

    def figures(
        self, terms: ObjectiveTerms, numbers: Mapping[str, Tensor]
    ) -> Mapping[str, tuple[Tensor, Tensor]]:
        """More figures to log, by name: values [B], and where they count, bool [B]."""
        return {}

    def weight(self, t: Tensor, schedule: Schedule) -> Tensor:
        """w_t = sigmoid(log SNR - b), [B] (section 3 of arXiv 2502.02483)."""
        if self.weighting_bias is None:
            return torch.ones_like(t)
        return torch.sigmoid(schedule.log_snr(t) - self.weighting_bias)

    def times(self, noise: Tensor) -> Tensor:
        """Training times in (0, 1) from standard normal `noise`, [B].

        uniform: t = Phi(z); logit-normal: t = sigmoid(mean + std z). A share of them is taken from
        the times at which a sampler of grid_steps steps evaluates the network.
        """
        t = partly_on_grid(noise, self._times_off_grid, self.grid_share, self.grid_steps)
        return t.clamp(TIME_MARGIN, 1 - TIME_MARGIN)

    def _times_off_grid(self, noise: Tensor) -> Tensor:
        if self.time_sampling == "uniform":
            return torch.special.ndtr(noise)
        return torch.sigmoid(self.time_mean + self.time_std * noise)


@dataclass(frozen=True, kw_only=True)
class PlainObjective(Objective):
    """Plain diffusion: the squared error of the mean of p(x_0 | x_t)."""

    kind: Literal["plain"] = "plain"

    def terms(self, drawn: Tensor, x0: Tensor, t: Tensor, schedule: Schedule) -> ObjectiveTerms:
        """w_t ||x0hat - x_0||^2 / D, [B]; arguments as in `DistributionalObjective`.

        drawn: the mean, [B, C, H, W].
        """
        drawn, x0, t = _precise(drawn, x0, t)
        apart = drawn - x0 if x0.ndim == drawn.ndim else drawn[:, None] - x0
        error = mean_square(apart)
        nothing = torch.zeros_like(error)
        return ObjectiveTerms(self.weight(t, schedule) * error, error.detach(), nothing, nothing)


@dataclass(frozen=True, kw_only=True)
class DistributionalObjective(Objective):
    """A distributional diffusion model: a proper score of m draws of p(x_0 | x_t)."""

    kind: Literal["ddm"] = "ddm"
    draws: int = 4  # m, the draws of x_0 for each x_t
    antithetic: bool = False  # half of them from xi, half from -xi: less noise, same mean
    score: ScoreConfig = field(default_factory=EnergyConfig)

    def __post_init__(self) -> None:
        """ValueError names a setting out of range."""
        super().__post_init__()
        if self.draws < 2:
            raise ValueError(
                f"draws is {self.draws}; a score needs two or more (kind: plain has none)"
            )
        if self.antithetic and (self.draws < 4 or self.draws % 2):
            raise ValueError(
                f"draws is {self.draws}; antithetic pairs need an even number of 4 or more"
            )

    @cached_property
    def _score(self) -> Score:
        """The score, made once; without the inputs of a training if it is not `prepared`."""
        return self.score.make()

    def check_latents(self, shape: Sequence[int]) -> None:
        """ValueError, naming the view, if latents [C, H, W] do not fit."""
        self.score.check_latents(shape)

    def check_micro_batch(self, images: int) -> None:
        """See `Objective`."""
        super().check_micro_batch(images)
        self.score.check_micro_batch(images)

    def resolved(self) -> DistributionalObjective:
        """See `Objective`."""
        return replace(self, score=self.score.resolved())

    def prepared(self, inputs: ViewInputs) -> DistributionalObjective:
        """A copy with a score of its own, whose views are made from `inputs`."""
        copy = replace(self)
        vars(copy)["_score"] = self.score.make(inputs)  # the cached property
        return copy

    def xi(self, normal: Callable[..., Tensor], shape: Sequence[int]) -> Tensor:
        """xi of m draws, [B, m, *shape]; the second half is minus the first if antithetic."""
        if self.antithetic:
            return antithetic_pairs(normal(self.draws // 2, *shape))
        return normal(self.draws, *shape)

    def terms(self, drawn: Tensor, x0: Tensor, t: Tensor, schedule: Schedule) -> ObjectiveTerms:
        """The weighted score of the draws against the data (eq. 14 of the paper), [B].

        drawn: [B, m, C, H, W]; x0: [B, C, H, W], or targets in its place, [B, n, C, H, W]. Norms
        are divided by their dimension, so that the loss has one scale for every size; the score is
        computed in float32 or better.
        """
        drawn, x0, t = _precise(drawn, x0, t)
        score = self._score
        terms = score(drawn, x0, t, antithetic=self.antithetic)
        independent = drawn[:, : self.draws // 2] if self.antithetic else drawn
        return ObjectiveTerms(
            self.weight(t, schedule) * terms.score(score.lam_at(t)),
            terms.confinement.detach(),
            terms.interaction.detach(),
            _spread(independent.detach()),
        )


OBJECTIVES: dict[str, type[Objective]] = {"ddm": DistributionalObjective, "plain": PlainObjective}


def _precise(*tensors: Tensor) -> list[Tensor]:
    """The tensors in float32 or better: the first one's type, at least."""
    dtype = torch.promote_types(tensors[0].dtype, torch.float32)
    return [tensor.to(dtype) for tensor in tensors]


def _spread(draws: Tensor) -> Tensor:
    """The standard deviation of the draws, root mean square over the sample, [B]."""
    m = draws.shape[1]
    apart = draws - draws.mean(dim=1, keepdim=True)  # draws.var(dim=1) is ten times slower
    return (apart.square().flatten(1).mean(1) * (m / (m - 1))).sqrt()
