"""What an objective gets from a trainer: random numbers, and the network to evaluate."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class RandomNumbers(Protocol):
    """The random numbers of a batch, [B, *shape], in the order of the calls."""

    def normal(self, *shape: int) -> Tensor: ...

    def uniform(self, *shape: int) -> Tensor: ...


class Evaluator(Protocol):
    """The network as an objective evaluates it on the samples of a micro-batch: x_0, [B, ...].

    `with_gradient` is called once in a micro-batch. `current` are the same weights and `average`
    their first moving average, both without dropout, for targets, under `torch.no_grad`.
    """

    def with_gradient(
        self, x_t: Tensor, t: Tensor, xi: Tensor | None = None, s: Tensor | None = None
    ) -> Tensor: ...

    def current(self, x_t: Tensor, t: Tensor, s: Tensor | None = None) -> Tensor: ...

    def average(self, x_t: Tensor, t: Tensor, s: Tensor | None = None) -> Tensor: ...

    def on(self, rows: Tensor) -> Evaluator:
        """The network on some of the samples, by their indices."""
        ...
