"""Power-function moving averages of weights (Karras et al., arXiv 2312.02696, section 3.1)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from latentddm.engine.distributed import local_tensor
from latentddm.engine.errors import UserError

SMALLEST_STD, LARGEST_STD = 0.005, 0.28  # gamma > 0 requires a width below 12^-1/2 = 0.2887


@dataclass(frozen=True, kw_only=True)
class EMAConfig:
    """The averages tracked in training, and the number of snapshots of them.

    The average of any other width can be reconstructed from the snapshots (`latentddm ema`).
    """

    widths: tuple[float, ...] = (0.10, 0.05)  # std / length of the phase; samples use the first
    snapshots: int = 16  # evenly spaced in the phase; each holds all widths in float16

    def __post_init__(self) -> None:
        """ValueError for a width or a number of snapshots out of range."""
        for width in self.widths:
            if not SMALLEST_STD <= width <= LARGEST_STD:
                raise ValueError(f"widths must lie in [{SMALLEST_STD}, {LARGEST_STD}], not {width}")
        if len(set(self.widths)) < len(self.widths):
            raise ValueError(f"widths must differ from each other, not {list(self.widths)}")
        if self.snapshots < 0:
            raise ValueError(f"snapshots must be at least 0, not {self.snapshots}")


def require_average(config: EMAConfig) -> None:
    """UserError without any width: for a training whose result is an average."""
    if not config.widths:
        raise UserError(
            "ema.widths is empty, but the result of a training is an average; give one width."
        )


def power_exponent(relative_std: float) -> float:
    """gamma of the power-function profile of standard deviation `relative_std`, as a share of time.

    Solves std^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)), eq. 123 of the paper.
    """
    inverse = relative_std**-2
    roots = np.roots([1, 7, 16 - inverse, 12 - inverse])
    return float(roots.real.max())


def ema_decay(gamma: float, images: int, batch: int) -> float:
    """Decay of the average in the step of `batch` images that ends at `images` seen (eq. 127).

    (1 - batch / images)^(gamma + 1); zero at the first step, so the first weights are copied.
    """
    return (1 - batch / images) ** (gamma + 1)


class EMA:
    """An averaged copy of a module, `module`, from which samples are drawn.

    The profile is a function of the images seen, so the average has no other state.
    """

    def __init__(self, source: nn.Module, relative_std: float) -> None:
        self.std, self.gamma = relative_std, power_exponent(relative_std)
        self.module = copy.deepcopy(source).eval().requires_grad_(False)
        self._trained = source

    @torch.no_grad()
    def update(self, images: int, batch: int) -> None:
        """Average in the source's weights after the step that ends at `images` seen."""
        average, source = self._weights
        torch._foreach_lerp_(average, source, 1 - ema_decay(self.gamma, images, batch))

    @cached_property
    def _weights(self) -> tuple[list[Tensor], list[Tensor]]:
        """Weights of average and source; the local shards if they are sharded."""
        average, source = (
            [local_tensor(parameter.detach()) for parameter in module.parameters()]
            for module in (self.module, self._trained)
        )
        return average, source


class Averages:
    """The averages of one network, of several widths; samples are drawn with `first`."""

    def __init__(self, source: nn.Module, config: EMAConfig) -> None:
        self.config = config
        self.tracked = [EMA(source, width) for width in config.widths]

    @property
    def first(self) -> nn.Module:
        return self.tracked[0].module

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The averaged modules by their names in a checkpoint: ema, then ema_<width>."""
        names = average_names(self.config.widths)
        return {names[ema.std]: ema.module for ema in self.tracked}

    def update(self, images: int, batch: int) -> None:
        """Update all averages after the step that ends at `images` seen."""
        for average in self.tracked:
            average.update(images, batch)


def average_names(widths: Sequence[float]) -> dict[float, str]:
    """The name of each average in a checkpoint, by its width: ema, then ema_<width>."""
    return {width: f"ema_{width:g}" if index else "ema" for index, width in enumerate(widths)}
