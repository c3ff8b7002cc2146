"""The power-function moving average of weights (Karras et al., arXiv 2312.02696, section 3.1)."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import nn


def power_exponent(relative_std: float) -> float:
    """gamma of the power-function profile whose standard deviation is `relative_std` of training.

    Solves std^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)), eq. 123 of the paper.
    """
    inverse = relative_std**-2
    roots = np.roots([1, 7, 16 - inverse, 12 - inverse])
    return float(roots.real.max())


def ema_decay(gamma: float, images: int, batch: int) -> float:
    """The factor of the old average in a step of `batch` that brings `images` seen (eq. 127).

    (1 - batch / images)^(gamma + 1); zero at the first step, so the first weights are copied.
    """
    return (1 - batch / images) ** (gamma + 1)


class EMA:
    """An averaged copy of a module; `module` is what to sample with.

    The profile depends on the number of images seen only, so the average has no other state.
    """

    def __init__(self, source: nn.Module, relative_std: float) -> None:
        self.gamma = power_exponent(relative_std)
        self.module = copy.deepcopy(source).eval().requires_grad_(False)
        self._average: list[torch.Tensor] = list(self.module.parameters())
        self._source: list[torch.Tensor] = list(source.parameters())

    @torch.no_grad()
    def update(self, images: int, batch: int) -> None:
        """Average in the source's weights after the step that brings `images` seen."""
        weight = 1 - ema_decay(self.gamma, images, batch)
        torch._foreach_lerp_(self._average, self._source, weight)
