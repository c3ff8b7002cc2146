"""Sizes of the images that are compared: nothing is enlarged, nothing is resized unasked."""

from __future__ import annotations

from dataclasses import dataclass

from autoencoder.images import ImageSource, SourceImage, UnreadableImage
from latentddm.engine.errors import UserError


@dataclass(frozen=True)
class SizeChecked:
    """A source that refuses images smaller than `size`; with `exact`, all but size x size."""

    source: ImageSource
    size: int
    exact: bool

    @property
    def name(self) -> str:
        return self.source.name

    def __len__(self) -> int:
        return len(self.source)

    def key(self, index: int) -> str:
        return self.source.key(index)

    def label(self, index: int) -> int | None:
        return self.source.label(index)

    def load(self, index: int) -> SourceImage:
        """The image; UserError if its size is refused."""
        loaded = self.source.load(index)
        width, height = loaded.image.size
        if self.exact and (width, height) != (self.size, self.size):
            raise UserError(
                f"{self.name} holds images of several sizes: {loaded.key} has {width} x {height} "
                f"pixels, others {self.size} x {self.size}; name the size to bring all of them to."
            )
        if min(width, height) < self.size:
            raise UserError(
                f"{loaded.key} in {self.name} has {width} x {height} pixels, less than the "
                f"{self.size} of the comparison; compare at a smaller size, nothing is enlarged."
            )
        return loaded


def common_size(source: ImageSource) -> int:
    """The edge in pixels of the first image that can be read; UserError if it is no square."""
    for index in range(len(source)):
        try:
            loaded = source.load(index)
        except UnreadableImage:
            continue
        width, height = loaded.image.size
        if width != height:
            raise UserError(
                f"{loaded.key} in {source.name} has {width} x {height} pixels and is no square; "
                "name the size to crop and resize all images to."
            )
        return width
    raise UserError(f"{source.name} holds no image that can be read; choose another folder.")
