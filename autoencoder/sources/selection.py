"""A part of a source in a given order, optionally with other labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from autoencoder.sources.protocol import ImageSource, SourceImage, is_sequential, left_out
from latentddm.engine.seeding import numpy_generator


def select_at_random(source: ImageSource, count: int | None, seed: int) -> ImageSource:
    """`count` random images of a source in its order, or the source itself for None or too many.

    Not the first ones, which may all be of one class.
    """
    if count is None or count >= len(source):
        return source
    chosen = numpy_generator(seed, "selection").choice(len(source), count, replace=False)
    return Selection(source, sorted(chosen.tolist()))


class Selection:
    """The images of `source` at `indices`.

    labels: one per index, in the place of the source's. name: of the selection in manifests; by
    default that of the source.
    """

    def __init__(
        self,
        source: ImageSource,
        indices: Sequence[int],
        labels: Sequence[int] | None = None,
        *,
        name: str | None = None,
    ) -> None:
        self.name = name or source.name
        self.left_out = left_out(source)
        self.sequential = is_sequential(source)
        self._source = source
        self._indices = indices
        self._labels = labels

    def __len__(self) -> int:
        return len(self._indices)

    def key(self, index: int) -> str:
        return self._source.key(self._indices[index])

    def label(self, index: int) -> int | None:
        if self._labels is None:
            return self._source.label(self._indices[index])
        return self._labels[index]

    def load(self, index: int) -> SourceImage:
        return replace(self._source.load(self._indices[index]), label=self.label(index))
