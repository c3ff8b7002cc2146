"""Images in memory as a source."""

from __future__ import annotations

import numpy as np
from PIL import Image

from autoencoder.sources.protocol import SourceImage
from latentddm.engine.errors import UserError


class ArraySource:
    """Pixels uint8 RGB [N,H,W,3]; the key of image i is i with seven digits."""

    def __init__(self, pixels: np.ndarray, name: str) -> None:
        if len(pixels) == 0:
            raise UserError(f"{name} holds no readable image; give other images.")
        self.pixels = pixels
        self.name = name

    def __len__(self) -> int:
        return len(self.pixels)

    def key(self, index: int) -> str:
        return f"{index:07d}"

    def label(self, index: int) -> int | None:
        return None

    def load(self, index: int) -> SourceImage:
        return SourceImage(self.key(index), Image.fromarray(self.pixels[index]), None)
