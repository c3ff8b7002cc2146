"""Every spatial position by itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from latentddm.scores.views.view import Differences, View, ViewConfig, ViewInputs


@dataclass(frozen=True, kw_only=True)
class PositionConfig(ViewConfig):
    """A spot for each spatial position: the norm over its channels (iDDM, arXiv 2609.37147).

    It identifies the distribution at each position, not the dependence between positions.
    """

    kind: Literal["position"] = "position"

    def make(self, inputs: ViewInputs | None = None) -> View:
        """See `ViewConfig`."""
        return Position()


class Position(View):
    """See `PositionConfig`."""

    def mean_squares(self, differences: Differences) -> Tensor:
        """[B, n, H W]."""
        return differences.mean_squares_over_channels
