"""Endless batches of pixels: order = f(seed, position), position = images seen by all ranks."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import overload

import numpy as np
import torch
from torch import Tensor

from autoencoder.images import (
    ImageSource,
    LoadedPixels,
    Preprocessing,
    UnreadableImage,
    iterate_pixels,
)
from latentddm.engine.errors import UserError
from latentddm.engine.seeding import numpy_generator

_log = logging.getLogger("latentddm")
_ENDLESS = 1 << 48


def pixel_batches(
    source: ImageSource,
    preprocessing: Preprocessing,
    batch_size: int,
    *,
    seed: int,
    start: int = 0,
    rank: int = 0,
    world_size: int = 1,
    flip: bool = False,
    workers: int = 0,
) -> Iterator[Tensor]:
    """Endless batches uint8 [B,H,W,3] after the first `start` images, reshuffled every epoch.

    batch_size: images of this rank. An unreadable image is replaced by the next readable one of
    the source, with one warning in the log.
    """
    order = EndlessOrder(len(source), seed, batch_size, start, rank, world_size)
    named: set[str] = set()
    batch: list[np.ndarray] = []
    for count, item in enumerate(iterate_pixels(source, order, preprocessing, workers)):
        loaded = item
        if isinstance(item, UnreadableImage):
            if item.key not in named:
                named.add(item.key)
                _log.warning("%s cannot be read (%s) and is left out", item.key, item.reason)
            loaded = _next_readable(source, preprocessing, order[count])
        assert isinstance(loaded, LoadedPixels)
        mirrored = flip and order.mirrored(count)
        batch.append(loaded.pixels[:, ::-1] if mirrored else loaded.pixels)
        if len(batch) == batch_size:
            yield torch.from_numpy(np.stack(batch))
            batch = []


class EndlessOrder(Sequence[int]):
    """The source indices of one rank's images, computed on access."""

    def __init__(
        self, images: int, seed: int, batch_size: int, start: int, rank: int, world_size: int
    ) -> None:
        self.images, self.seed = images, seed
        self.batch_size, self.start = batch_size, start
        self.rank, self.world_size = rank, world_size
        self._epoch = lru_cache(maxsize=2)(self._draw_epoch)

    def __len__(self) -> int:
        return _ENDLESS

    @overload
    def __getitem__(self, item: int) -> int: ...
    @overload
    def __getitem__(self, item: slice) -> Sequence[int]: ...
    def __getitem__(self, item: int | slice) -> int | Sequence[int]:
        if isinstance(item, slice):
            return [self[index] for index in range(*item.indices(len(self)))]
        epoch, place = divmod(self._position(item), self.images)
        return int(self._epoch(epoch)[0][place])

    def mirrored(self, count: int) -> bool:
        """Whether image number `count` of this rank is mirrored."""
        epoch, place = divmod(self._position(count), self.images)
        return bool(self._epoch(epoch)[1][place])

    def _position(self, count: int) -> int:
        """The position, among the images of all ranks, of this rank's image number `count`."""
        batch, place = divmod(count, self.batch_size)
        everyone = self.batch_size * self.world_size
        return self.start + batch * everyone + self.rank * self.batch_size + place

    def _draw_epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        generator = numpy_generator(self.seed, "pixel order", epoch)
        return generator.permutation(self.images), generator.random(self.images) < 0.5


def _next_readable(source: ImageSource, preprocessing: Preprocessing, index: int) -> LoadedPixels:
    following = [(index + step) % len(source) for step in range(1, len(source))]
    for item in iterate_pixels(source, following, preprocessing):
        if isinstance(item, LoadedPixels):
            return item
    raise UserError(f"{source.name} holds no readable image; give other images.")
