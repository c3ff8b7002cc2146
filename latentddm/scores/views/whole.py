"""The whole sample at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from latentddm.scores.views.view import Differences, View, ViewConfig, ViewInputs


@dataclass(frozen=True, kw_only=True)
class WholeConfig(ViewConfig):
    """One spot: the norm of the flattened sample."""

    kind: Literal["whole"] = "whole"

    def make(self, inputs: ViewInputs | None = None) -> View:
        """See `ViewConfig`."""
        return Whole()


class Whole(View):
    """See `WholeConfig`."""

    def mean_squares(self, differences: Differences) -> Tensor:
        """[B, n, 1]."""
        return differences.mean_squares_over_channels.mean(2, keepdim=True)
