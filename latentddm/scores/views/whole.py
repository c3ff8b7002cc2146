"""The whole sample at once."""

from __future__ import annotations

from torch import Tensor

from latentddm.scores.views.view import Differences, View


class Whole(View):
    """One spot: the norm of the flattened sample."""

    def mean_squares(self, differences: Differences) -> Tensor:
        """[B, n, 1]."""
        return differences.mean_squares_over_channels.mean(2, keepdim=True)
