"""Octave bands of two-dimensional cosines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from latentddm.scores.views.components import averaging, cosine_components, cosine_octaves
from latentddm.scores.views.view import Differences, View, ViewConfig, ViewInputs


@dataclass(frozen=True, kw_only=True)
class BandsConfig(ViewConfig):
    """A spot for each octave of the orthonormal DCT over positions, and for each channel group.

    Octaves: the mean over the picture, then frequencies of 1, 2-3, 4-7, ... half periods.
    """

    kind: Literal["bands"] = "bands"
    octaves: int | None = None  # the finest ones beyond this number are one; None: all
    groups: int = 1  # of consecutive channels

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("octaves", "groups"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")

    def check_latents(self, shape: Sequence[int]) -> None:
        """See `ViewConfig`."""
        if shape[0] % self.groups:
            raise ValueError(
                f"groups of the view 'bands' is {self.groups}, no divisor of the {shape[0]} "
                "channels of the latents"
            )

    def make(self, inputs: ViewInputs | None = None) -> View:
        """See `ViewConfig`."""
        return Bands(self.octaves, self.groups)


class Bands(View):
    """See `BandsConfig`."""

    def __init__(self, octaves: int | None, groups: int) -> None:
        self.octaves, self.groups = octaves, groups

    def features(self, x: Tensor, t: Tensor) -> Tensor:
        """Components [B, n, C / groups, groups, H, W]."""
        return cosine_components(x).unflatten(2, (self.groups, -1)).transpose(2, 3)

    def mean_squares(self, differences: Differences) -> Tensor:
        """[B, n, groups times octaves]."""
        height, width = differences.parts[0].shape[-2:]
        octaves = cosine_octaves(height, width).flatten()
        if self.octaves is not None:
            octaves = octaves.clamp_max(self.octaves - 1)
        squares = differences.mean_squares_over_channels
        means = squares.unflatten(2, (self.groups, -1)) @ averaging(octaves).to(squares)
        return means.flatten(2)
