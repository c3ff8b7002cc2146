"""The network of a training as its objective evaluates it: wrapped, as it is, and averaged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from torch import Tensor, nn

from latentddm.engine.trainable_module import TrainableModule


@dataclass(frozen=True)
class NetworkEvaluator:
    """`protocols.Evaluator` of a trainable network, on a micro-batch.

    labels: [B], of its samples, if any. bare: `current` is the network without what sharding and
    torch.compile wrap around it, which derivatives cannot pass.
    """

    trainable: TrainableModule
    labels: Tensor | None = None
    bare: bool = False

    def with_gradient(
        self, x_t: Tensor, t: Tensor, xi: Tensor | None = None, s: Tensor | None = None
    ) -> Tensor:
        return self._evaluate(self.trainable.wrapped, x_t, t, xi, s)

    def current(self, x_t: Tensor, t: Tensor, s: Tensor | None = None) -> Tensor:
        network = self.trainable.network
        with _without_dropout(network):
            return self._evaluate(network.forward if self.bare else network, x_t, t, None, s)

    def average(self, x_t: Tensor, t: Tensor, s: Tensor | None = None) -> Tensor:
        return self._evaluate(self.trainable.averages.first, x_t, t, None, s)

    def on(self, rows: Tensor) -> NetworkEvaluator:
        return self if self.labels is None else replace(self, labels=self.labels[rows])

    def _evaluate(
        self,
        network: Callable[..., Tensor],
        x_t: Tensor,
        t: Tensor,
        xi: Tensor | None,
        s: Tensor | None,
    ) -> Tensor:
        given = () if self.labels is None else (self.labels,)
        named = {} if s is None else {"s": s}
        with self.trainable.accelerator.autocast():
            return network(x_t, t, xi, *given, **named)


@contextmanager
def _without_dropout(network: nn.Module) -> Iterator[None]:
    training = network.training
    if training:
        network.eval()
    try:
        yield
    finally:
        if training:
            network.train()
