"""Averages, and standard deviations, over square cells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from latentddm.scores.views.view import Differences, View, ViewConfig, ViewInputs

TINY_VARIANCE = 1e-4  # added to the variance, whose root has no gradient at zero


@dataclass(frozen=True, kw_only=True)
class PooledConfig(ViewConfig):
    """A spot for each cell of several sizes: the norm over the channels of the cell's average.

    The average, not the component of unit norm: smooth differences keep their scale, and noise is
    averaged out. A cell at the lower or right edge may be smaller.
    """

    kind: Literal["pooled"] = "pooled"
    cells: tuple[int, ...] = (2, 4, 0)  # edges in positions; 0: the whole picture
    std: bool = False  # standard deviations in each cell as well, as spots of their own

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.cells or min(self.cells) < 0:
            raise ValueError(f"cells must be edges of at least 0, not {list(self.cells)}")

    def make(self, inputs: ViewInputs | None = None) -> View:
        """See `ViewConfig`."""
        return Pooled(self.cells, self.std)


class Pooled(View):
    """See `PooledConfig`."""

    def __init__(self, cells: tuple[int, ...], std: bool) -> None:
        self.cells, self.std = cells, std

    def features(self, x: Tensor, t: Tensor) -> Tensor:
        """[B, n, C, cells]."""
        pictures = x.flatten(0, 1)
        means = self._means(pictures)
        if self.std:
            variances = (self._means(pictures.square()) - means.square()).clamp_min(0)
            means = torch.cat([means, (variances + TINY_VARIANCE).sqrt()], dim=2)
        return means.unflatten(0, x.shape[:2])

    def mean_squares(self, differences: Differences) -> Tensor:
        """[B, n, cells]."""
        return differences.mean_squares_over_channels

    def _means(self, pictures: Tensor) -> Tensor:
        """Averages over the cells of all sizes, [R, C, cells], of pictures [R, C, H, W]."""
        of_sizes = [
            functional.avg_pool2d(pictures, cell, ceil_mode=True).flatten(2)
            if cell
            else pictures.mean((2, 3))[..., None]
            for cell in self.cells
        ]
        return torch.cat(of_sizes, dim=2)
