"""Preprocessing: from an image of any size to the square of pixels that is encoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image

from autoencoder.sources.decoding import SMALLEST_SIDE, to_rgb
from latentddm.engine.errors import UserError

VERSION = 1  # of the arithmetic below; a change of the resulting pixels needs a new number


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """The centre square of an image, resized to `size` pixels a side.

    The filter is PIL's anti-aliased Lanczos, without a reducing gap, on the cropped pixels alone.
    Smaller images are enlarged by the same filter.
    """

    size: int
    crop: Literal["center"] = "center"

    def __post_init__(self) -> None:
        if self.size < SMALLEST_SIDE:
            raise UserError(f"size is {self.size} pixels; give {SMALLEST_SIDE} or more.")
        if self.crop != "center":
            raise UserError(f"The crop {self.crop!r} is unknown; use 'center'.")

    def to_pixels(self, image: Image.Image) -> np.ndarray:
        """Crop and resize; uint8 RGB [size, size, 3]."""
        image = to_rgb(image)
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        # not resize(box=...): its filter reads pixels beyond the crop
        square = image.crop((left, top, left + side, top + side))
        return np.array(square.resize((self.size, self.size), Image.Resampling.LANCZOS))

    def describe(self) -> dict[str, Any]:
        """The record in manifests; equal descriptions imply equal pixels."""
        return {
            "size": self.size,
            "crop": self.crop,
            "filter": "lanczos",
            "version": VERSION,
        }
