"""The protocol of a view with a network of its own, trained beside the generator."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from latentddm.engine.metric_accumulator import MetricAccumulator
from latentddm.scores.views import View


class LearntView(View, Protocol):
    """A view that learns. Its `make` appends it to the inputs' `learnt`, for the trainer to find.

    The trainer calls `begin`, then `place` before the score of each micro-batch, and after the
    generator's step `learn`. The whole state is `network` and `optimizer`, which are saved and
    resumed with the generator's, under `name`.
    """

    name: str
    network: nn.Module

    @property
    def optimizer(self) -> Optimizer: ...

    def begin(self, images: int, share: int) -> None:
        """A step begins, after the first `images`, of `share` samples on this process.

        Until `learn` the network is frozen: gradients go through it to the draws.
        """

    def place(self, part: slice, x_t: Tensor, t: Tensor, drawn: Tensor, targets: Tensor) -> None:
        """The micro-batch `part` of the share that is compared next.

        x_t [B, C, H, W], t [B]; drawn [B, m, C, H, W], detached; targets [B, C, H, W] or
        [B, n, C, H, W].
        """

    def learn(self, images: int, accumulator: MetricAccumulator) -> None:
        """One step of the view's own optimizer, on everything placed since `begin`."""
