"""Sources of images: their sizes, and the extraction of their features by one or more processes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from autoencoder.images import (
    ImageSource,
    LoadedPixels,
    Preprocessing,
    SourceImage,
    UnreadableImage,
    iterate_pixels,
)
from latentddm.engine.errors import UserError
from latentddm.engine.progress import Progress
from latentddm.evaluation.features import (
    BATCH_SIZE,
    FeatureCollector,
    FeatureExtractor,
    FeatureSet,
    merge_features,
)

Part = TypeVar("Part")
NAMED_IMAGES = 3  # unreadable images that the warning names


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
                f"pixels, others {self.size} x {self.size}; name the size to crop and resize all "
                "of them to."
            )
        if min(width, height) < self.size:
            raise UserError(
                f"{loaded.key} in {self.name} has {width} x {height} pixels, less than the "
                f"{self.size} of the comparison; compare at a smaller size, nothing is enlarged."
            )
        return loaded


def common_size(source: ImageSource) -> int:
    """Edge in pixels of the first readable image; UserError if it is not square."""
    for index in range(len(source)):
        try:
            loaded = source.load(index)
        except UnreadableImage:
            continue
        width, height = loaded.image.size
        if width != height:
            raise UserError(
                f"{loaded.key} in {source.name} has {width} x {height} pixels and is not square; "
                "name the size to crop and resize all images to."
            )
        return width
    raise UserError(f"{source.name} holds no readable image; choose another folder.")


def extract_from_source(
    source: ImageSource,
    preprocessing: Preprocessing,
    extractors: Mapping[str, FeatureExtractor],
    *,
    batch_size: int = BATCH_SIZE,
    workers: int = 0,
    show_progress: bool = False,
) -> tuple[dict[str, FeatureSet], list[str]]:
    """The features of a source by extractor, and its unreadable images with reasons.

    In a torch.distributed group each process reads its share, and all return the whole.
    """
    rank, world_size = process_share()
    mine = range(rank, len(source), world_size)
    collectors = {
        space: FeatureCollector(extractor, source.name) for space, extractor in extractors.items()
    }
    batches = _Batches(collectors, batch_size)
    unreadable: list[str] = []
    show = show_progress and rank == 0
    with Progress(len(mine), f"features of {source.name}", show=show) as progress:
        for item in iterate_pixels(source, mine, preprocessing, workers):
            if isinstance(item, UnreadableImage):
                unreadable.append(str(item))
            else:
                batches.add(item)
            progress.update(1)
        batches.flush()
    parts = gather(({space: c.features() for space, c in collectors.items()}, unreadable))
    unreadable = [text for _, texts in parts for text in texts]
    _warn_of_unreadable(source, unreadable)
    sets = [sets for sets, _ in parts]
    merged = {space: merge_features([part[space] for part in sets]) for space in extractors}
    return merged, unreadable


def process_share() -> tuple[int, int]:
    """(rank, world size) of this process in its torch.distributed group; (0, 1) alone."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def gather(part: Part) -> list[Part]:
    """The parts of all processes in the order of ranks, on every process."""
    _, world_size = process_share()
    if world_size == 1:
        return [part]
    parts: list[Part] = [part] * world_size
    torch.distributed.all_gather_object(parts, part)
    return parts


def _warn_of_unreadable(source: ImageSource, unreadable: list[str]) -> None:
    if unreadable:
        logging.getLogger("latentddm").warning(
            "%d of %d images of %s could not be read and are left out: %s%s",
            len(unreadable),
            len(source),
            source.name,
            "; ".join(unreadable[:NAMED_IMAGES]),
            "; ..." if len(unreadable) > NAMED_IMAGES else "",
        )


class _Batches:
    """Single images to batches for all collectors."""

    def __init__(self, collectors: dict[str, FeatureCollector], batch_size: int) -> None:
        self._collectors = collectors
        self._batch_size = batch_size
        self._items: list[LoadedPixels] = []

    def add(self, item: LoadedPixels) -> None:
        self._items.append(item)
        if len(self._items) == self._batch_size:
            self.flush()

    def flush(self) -> None:
        if self._items:
            pixels = torch.from_numpy(np.stack([item.pixels for item in self._items]))
            for collector in self._collectors.values():
                collector.add([item.index for item in self._items], pixels)
            self._items = []
