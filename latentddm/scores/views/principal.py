"""Octave bands of principal components."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from latentddm.scores.views.components import averaging, principal_axes, rank_octaves
from latentddm.scores.views.view import Differences, View, ViewConfig, ViewInputs, required

LEAST_VARIANCE = 1e-3  # of a whitened component; the mean over all components is 1


@dataclass(frozen=True, kw_only=True)
class PrincipalConfig(ViewConfig):
    """A spot for each octave of principal components of the latents: 1-2, 3-6, 7-14, ...

    whitening: the power p of components divided by their standard deviation to the power p; of
    latents of unit variance the mean square is 1 at p = 0 and at p = 1. Components beyond the
    number of samples are left out.
    """

    kind: Literal["principal"] = "principal"
    whitening: float = 0.0
    samples: int = 4096  # of the store, from which the axes are computed

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.whitening <= 1:
            raise ValueError(f"whitening must lie in [0, 1], not {self.whitening}")
        if self.samples < 2:
            raise ValueError(f"samples must be at least 2, not {self.samples}")

    def make(self, inputs: ViewInputs | None = None) -> View:
        """See `ViewConfig`."""
        axes, variances = principal_axes(required(inputs, self.kind).latents(self.samples))
        scales = variances.clamp_min(LEAST_VARIANCE) ** (-self.whitening / 2)
        return Principal(axes * scales, averaging(rank_octaves(len(variances))))


class Principal(View):
    """See `PrincipalConfig`. axes: [D, K]; means: over the components of each band, [K, V]."""

    def __init__(self, axes: Tensor, means: Tensor) -> None:
        self._axes, self._means = axes, means

    def features(self, x: Tensor, t: Tensor) -> Tensor:
        """[B, n, K]."""
        self._axes, self._means = self._axes.to(x), self._means.to(x)
        return x.flatten(2) @ self._axes

    def mean_squares(self, differences: Differences) -> Tensor:
        """[B, n, bands]."""
        squares = torch.cat([part.square() for part in differences.parts], dim=1)
        return squares @ self._means
