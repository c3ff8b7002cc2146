"""From a source of images to its features: read, skip what is unreadable, share among processes."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np
import torch

from autoencoder.images import (
    ImageSource,
    LoadedPixels,
    Preprocessing,
    UnreadableImage,
    iterate_pixels,
)
from latentddm.engine.progress import Progress
from latentddm.evaluation.features import (
    BATCH_SIZE,
    FeatureCollector,
    FeatureExtractor,
    FeatureSet,
    gather,
    merge_features,
    process_share,
)


def extract_from_source(
    source: ImageSource,
    preprocessing: Preprocessing,
    extractors: Mapping[str, FeatureExtractor],
    *,
    batch_size: int = BATCH_SIZE,
    workers: int = 0,
    show_progress: bool = False,
) -> tuple[dict[str, FeatureSet], list[str]]:
    """The features of a source by extractor, and the images that could not be read, with reasons.

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


def _warn_of_unreadable(source: ImageSource, unreadable: list[str]) -> None:
    if unreadable:
        logging.getLogger("latentddm").warning(
            "%d of %d images of %s could not be read and are left out: %s%s",
            len(unreadable),
            len(source),
            source.name,
            "; ".join(unreadable[:3]),
            "; ..." if len(unreadable) > 3 else "",
        )


class _Batches:
    """Collects single images and hands them to the collectors a batch at a time."""

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
