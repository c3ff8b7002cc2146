"""A trained network of two times as a flow map, without and with labels."""

from __future__ import annotations

from torch import Tensor, nn


class FlowMapNetwork:
    """g(x_t, t, s) of `diffusion.flow_maps`: a network that is evaluated without xi."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def __call__(self, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """[B, C, H, W] for x_t of that shape, t and s [B]."""
        return self.network(x_t, t, None, None, s)

    def ending_at(self, s: Tensor) -> StepDenoiser:
        """The step to s [B] in the form of a denoiser, for guidance."""
        return StepDenoiser(self.network, s)


class StepDenoiser:
    """A flow map with its end given: called as a denoiser of the mean, with labels."""

    def __init__(self, network: nn.Module, s: Tensor) -> None:
        self.network, self.s = network, s

    def __call__(
        self, x_t: Tensor, t: Tensor, xi: Tensor | None, labels: Tensor | None = None
    ) -> Tensor:
        """[B n, C, H, W]: the rows come n times, with guidance twice; xi is not read."""
        return self.network(x_t, t, None, labels, self.s.repeat(len(x_t) // len(self.s)))
