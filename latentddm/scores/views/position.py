"""Every spatial position by itself."""

from __future__ import annotations

from torch import Tensor

from latentddm.scores.views.view import Differences, View


class Position(View):
    """A spot for each spatial position: the norm over its channels (iDDM, arXiv 2609.37147).

    It identifies the distribution at each position, not the dependence between positions.
    """

    def mean_squares(self, differences: Differences) -> Tensor:
        """[B, n, H W]."""
        return differences.mean_squares_over_channels
