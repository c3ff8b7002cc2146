"""Differences between neighbouring positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from latentddm.scores.views.view import Differences, View, ViewConfig, ViewInputs


@dataclass(frozen=True, kw_only=True)
class EdgesConfig(ViewConfig):
    """A spot for each position: its differences to the right and to the lower neighbour.

    Over sqrt(2), so that white noise keeps its scale. Positions at an edge have one of the two; the
    last one has none and is no spot.
    """

    kind: Literal["edges"] = "edges"

    def check_latents(self, shape: Sequence[int]) -> None:
        """See `ViewConfig`."""
        if shape[1] * shape[2] < 2:
            raise ValueError("the view 'edges' is of latents of several positions, not of one")

    def make(self, inputs: ViewInputs | None = None) -> View:
        """See `ViewConfig`."""
        return Edges()


class Edges(View):
    """See `EdgesConfig`."""

    def mean_squares(self, differences: Differences) -> Tensor:
        """[B, n, H W - 1]."""
        height, width = differences.parts[0].shape[-2:]
        sums = torch.cat([_sums(part) for part in differences.parts], dim=1)  # [B, n, H, W]
        neighbours = sums.new_full((height, width), 2.0)
        neighbours[-1] -= 1
        neighbours[:, -1] -= 1
        neighbours[-1, -1] = 1  # of no difference
        channels = differences.parts[0].shape[2]
        return (sums / (2 * channels * neighbours)).flatten(2)[..., :-1]


def _sums(x: Tensor) -> Tensor:
    """Sums over channels of the squared differences to both neighbours, [B, n, H, W]."""
    right = x.diff(dim=-1).square().sum(2)
    below = x.diff(dim=-2).square().sum(2)
    pad = torch.nn.functional.pad
    return pad(right, (0, 1)) + pad(below, (0, 0, 0, 1))
