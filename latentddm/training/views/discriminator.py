"""Features of a discriminator of steps (x_s, x_t), learnt beside the generator.

Xiao et al., "Tackling the Generative Learning Trilemma with Denoising Diffusion GANs",
arXiv 2112.07804, have the discriminator of steps; here it is a view of an energy score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.optim import Optimizer

from latentddm.diffusion.process import bridge_step
from latentddm.engine.metric_accumulator import MetricAccumulator
from latentddm.engine.optimizer import OptimizerConfig
from latentddm.engine.seeding import BatchDraws, derive_seed
from latentddm.engine.trainable_module import TrainableModule
from latentddm.scores.views import Differences, View, ViewConfig, ViewInputs
from latentddm.training.views.discriminator_network import DiscriminatorNetwork
from latentddm.training.views.inputs import TrainingInputs, of_training
from latentddm.training.views.learnt import LearntView

PENALTY_SIZE = 0.1  # standard deviation of the noise by which the gradient is estimated


@dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig(ViewConfig):
    """The last features of a network that tells steps to the target from steps to a draw.

    x_s is drawn from the bridge q(x_s | x_0, x_t) with churn 1, with the target or a draw as x_0
    and one noise for all of an x_t; s is uniform in [0, t), or t - landing. The network is trained
    by the logistic loss and a penalty / 2 times the squared gradient at the data, estimated without
    a second derivative (arXiv 2501.08316). Features are divided by the running root mean square of
    their differences between draw and target.
    """

    learns: ClassVar[bool] = True

    kind: Literal["discriminator"] = "discriminator"
    width: int = 64
    blocks: int = 3
    patch_size: int = 2  # edge of the patch of latents that is one position of the network
    spots: Literal["whole", "position"] = "whole"  # of the features: averaged, or every position
    landing: float | None = None  # t - s; None: s is uniform
    learning_rate: float = 2e-4
    penalty: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("width", "blocks", "patch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.landing is not None and not 0 < self.landing <= 1:
            raise ValueError(f"landing must lie in (0, 1], not {self.landing}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be above 0, not {self.learning_rate}")
        if self.penalty < 0:
            raise ValueError(f"penalty must be at least 0, not {self.penalty}")

    def check_latents(self, shape: Sequence[int]) -> None:
        """See `ViewConfig`."""
        if shape[1] % self.patch_size or shape[2] % self.patch_size:
            raise ValueError(
                f"patch_size of the view 'discriminator' is {self.patch_size}, no divisor of "
                f"latents of {shape[1]} x {shape[2]}"
            )

    def make(self, inputs: ViewInputs | None = None) -> View:
        """See `ViewConfig`."""
        training = of_training(inputs, self.kind)
        view = Discriminator(self, training, len(training.learnt))
        training.learnt.append(view)
        return view


class Steps(NamedTuple):
    """Steps from x_t at t to s, of R rows; the noise is that of the bridge."""

    x_t: Tensor  # [R, C, H, W]
    t: Tensor  # [R]
    s: Tensor
    noise: Tensor  # [R, C, H, W]


class Placed(NamedTuple):
    """What the network learns from in one micro-batch; rows of weight 0 do not count."""

    steps: Steps
    real: Tensor  # x_s with the target, [R, C, H, W]
    drawn: Tensor  # x_s with a draw
    moved: Tensor  # `real` with noise of PENALTY_SIZE
    weight: Tensor  # [R], of a mean over the part of the batch that is compared


class Discriminator(LearntView):
    """See `DiscriminatorConfig`; number: of the learnt views made before this one."""

    def __init__(self, config: DiscriminatorConfig, inputs: TrainingInputs, number: int) -> None:
        self.name = config.kind if number == 0 else f"{config.kind}_{number + 1}"
        self.config, self._inputs = config, inputs
        accelerator = inputs.accelerator
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(inputs.seed, self.name))
            self.network = DiscriminatorNetwork(
                inputs.store.shape[0], config.width, config.blocks, config.patch_size
            )
        optimizer = OptimizerConfig(learning_rate=config.learning_rate, beta1=0.5)
        self._trainable = TrainableModule(
            self.network, optimizer, inputs.loop, inputs.span, accelerator
        )

    @property
    def optimizer(self) -> Optimizer:
        return self._trainable.optimizer

    def begin(self, images: int, share: int) -> None:
        """See `LearntView`."""
        self.network.requires_grad_(False)
        random = BatchDraws(self._inputs.seed, self.name, images, share, self._inputs.accelerator)
        shape = self._inputs.store.shape
        self._uniform = random.uniform()
        self._noise, self._moves = random.normal(*shape), random.normal(*shape)
        self._placed: list[Placed] = []

    def place(self, part: slice, x_t: Tensor, t: Tensor, drawn: Tensor, targets: Tensor) -> None:
        """See `LearntView`."""
        landing = self.config.landing
        s = self._uniform[part] * t if landing is None else (t - landing).clamp_min(0)
        rows = self.config.rows(t)
        rows = torch.arange(len(t), device=t.device) if rows is None else rows
        counted = torch.ones(len(rows), device=t.device) / (len(t) * self.config.share)
        if not len(rows):  # every process runs the network
            rows, counted = rows.new_zeros(1), counted.new_zeros(1)
        self._steps = Steps(x_t[rows], t[rows], s[rows], self._noise[part][rows])
        target = targets if targets.ndim == x_t.ndim else targets[:, 0]
        real = self._arrive(self._steps, target[rows])
        fake = self._arrive(self._steps, drawn[rows, 0].to(x_t.dtype))
        moved = real + PENALTY_SIZE * self._moves[part][rows]
        self._placed.append(Placed(self._steps, real, fake, moved, counted))

    def features(self, x: Tensor, t: Tensor) -> Tensor:
        """[R, n, F, P] of samples of x_0 [R, n, C, H, W] for the rows that were placed last."""
        count = x.shape[1]
        steps = Steps(*(each.repeat_interleave(count, dim=0) for each in self._steps))
        x_s = self._arrive(steps, x.flatten(0, 1))
        with self._inputs.accelerator.autocast():
            maps = self.network.features(x_s, steps.x_t, steps.t, steps.s)
        return (self._spots(maps) * self.network.scale()).unflatten(0, (-1, count))

    def mean_squares(self, differences: Differences) -> Tensor:
        """[B, n, 1], or [B, n, P] of the spots "position"."""
        return differences.mean_squares_over_channels

    def learn(self, images: int, accumulator: MetricAccumulator) -> None:
        """See `LearntView`."""
        self.network.requires_grad_(True)
        squares = []
        parts = self._trainable.micro_batches(len(self._noise))
        for _, placed in zip(parts, self._placed, strict=True):
            x_s = torch.cat([placed.real, placed.drawn, placed.moved])
            x_t, t, s, _ = (torch.cat([each] * 3) for each in placed.steps)
            with self._inputs.accelerator.autocast():
                logits, maps = self._trainable.wrapped(x_s, x_t, t, s)
            real, drawn, moved = logits.chunk(3)
            loss = logistic_loss(real, drawn)
            penalty = gradient_penalty(real, moved, PENALTY_SIZE)
            total = loss + self.config.penalty / 2 * penalty
            self._trainable.backward((placed.weight * total).sum())
            accumulator.add(f"{self.name}/loss", loss, placed.weight)
            accumulator.add(f"{self.name}/penalty", penalty, placed.weight)
            of_real, of_drawn, _ = self._spots(maps.detach()).chunk(3)
            apart = (of_real - of_drawn).square().flatten(1).mean(1)
            counts = (placed.weight > 0).to(apart)
            squares.append(torch.stack([(counts * apart).sum(), counts.sum()]))
        total_squares = self._inputs.accelerator.reduce(torch.stack(squares).sum(0), "sum")
        self._trainable.step(images)
        self.network.follow(total_squares)

    def _arrive(self, steps: Steps, x0: Tensor) -> Tensor:
        """x_s ~ q(x_s | x_0, x_t) with churn 1 and the noise of the step, [R, C, H, W]."""
        x_t, t, s, noise = steps
        return bridge_step(x_t, x0, t, s, noise, self._inputs.schedule, churn=1.0)

    def _spots(self, maps: Tensor) -> Tensor:
        """Features [R, F, P] of maps [R, F, h, w]; P is 1 for the spots "whole"."""
        positions = maps.float().flatten(2)
        return positions if self.config.spots == "position" else positions.mean(2, keepdim=True)


def logistic_loss(real: Tensor, drawn: Tensor) -> Tensor:
    """softplus(-D(real)) + softplus(D(drawn)), [R]; 2 log 2 where D is 0."""
    return functional.softplus(-real) + functional.softplus(drawn)


def gradient_penalty(logits: Tensor, moved: Tensor, size: float) -> Tensor:
    """|grad D|^2, [R], from D(x) and D(x + size z), z ~ N(0, I): unbiased as size -> 0."""
    return ((moved - logits) / size).square()
