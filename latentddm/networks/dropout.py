"""Dropout with masks that the draws of an x_t share, and that a training chooses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional


class Masks(Protocol):
    """Dropout masks of the rows at hand, by the number of the layer."""

    def __call__(self, layer: int, shape: Sequence[int], probability: float) -> Tensor:
        """[rows, *shape]: 0, or 1 / (1 - probability)."""
        ...


class SharedDropout(nn.Module):
    """Dropout with one mask for all draws of an x_t: their differences come from xi alone.

    In a training the masks are those that `place_masks` was given; otherwise torch's generator
    draws them.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability
        self.masks: Masks | None = None
        self.layer = 0

    def forward(self, x: Tensor, rows: int) -> Tensor:
        """x: [rows or rows m, ...]; rows: the number of x_t, B."""
        if not self.training or self.probability == 0:
            return x
        return (x.unflatten(0, (rows, -1)) * self._mask(x, rows)[:, None]).flatten(0, 1)

    @torch.compiler.disable  # compiled code would hold the masks of one step as constants
    def _mask(self, x: Tensor, rows: int) -> Tensor:
        """[rows, ...] in x's format."""
        shape = x.shape[1:]
        if self.masks is None:
            return functional.dropout(x.new_ones(rows, *shape), self.probability)
        return self.masks(self.layer, shape, self.probability).to(x.dtype)


def place_masks(network: nn.Module, masks: Masks) -> None:
    """Give the dropout layers of `network` the masks of the next rows."""
    layers = (module for module in network.modules() if isinstance(module, SharedDropout))
    for number, layer in enumerate(layers):
        layer.masks, layer.layer = masks, number


class RecordedMasks:
    """Dropout masks in memory that stays where it is, for a CUDA graph that reads them there.

    Placed by `place_masks` before the recording; `refill` before each replay.
    """

    def __init__(self, rows: int, device: torch.device) -> None:
        """rows: images of a recorded pass."""
        self.rows, self.device = rows, device
        self._masks: dict[int, tuple[Tensor, float]] = {}

    def __call__(self, layer: int, shape: Sequence[int], probability: float) -> Tensor:
        """The memory of a layer's masks, [rows, *shape]; ones until it is filled."""
        if layer not in self._masks:
            ones = torch.ones(self.rows, *shape, device=self.device)
            self._masks[layer] = ones, probability
        return self._masks[layer][0]

    def refill(self, masks: Masks) -> None:
        """Draw the masks of the next rows."""
        for layer, (kept, probability) in self._masks.items():
            kept.copy_(masks(layer, kept.shape[1:], probability))
