"""From an image of any size to the square of pixels that an autoencoder sees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image

from autoencoder.sources.decoding import SMALLEST_SIDE, to_rgb
from latentddm.engine.errors import UserError

VERSION = 1  # of the arithmetic below: other pixels for the same image need another number


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """The centre square of an image, resized to `size` pixels a side.

    The filter is PIL's Lanczos, which is anti-aliased, without a reducing gap; it never looks
    beyond the crop. Smaller images are enlarged by the same filter.
    """

    size: int
    crop: Literal["center"] = "center"

    def __post_init__(self) -> None:
        if self.size < SMALLEST_SIDE:
            raise UserError(f"The size is {self.size} pixels; give {SMALLEST_SIDE} or more.")
        if self.crop != "center":
            raise UserError(f"The crop {self.crop!r} is not known; the only one is 'center'.")

    def to_pixels(self, image: Image.Image) -> np.ndarray:
        """Crop and resize; uint8 RGB [size, size, 3]."""
        image = to_rgb(image)
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        # not resize's own box: with that the filter reads beyond the crop
        square = image.crop((left, top, left + side, top + side))
        return np.array(square.resize((self.size, self.size), Image.Resampling.LANCZOS))

    def describe(self) -> dict[str, Any]:
        """What manifests record; equal descriptions mean equal pixels."""
        return {
            "size": self.size,
            "crop": self.crop,
            "filter": "lanczos",
            "version": VERSION,
        }
