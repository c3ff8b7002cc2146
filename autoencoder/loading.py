"""Images of a source as pixels, in a given order, decoded in worker processes."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from autoencoder.preprocessing import Preprocessing
from autoencoder.sources.protocol import ImageSource, UnreadableImage
from latentddm.engine.errors import JobError, UserError
from latentddm.engine.signals import STOPPING

# A message between processes holds several images, which costs less; not so many that the
# queue fills the memory with images of 1024 pixels.
IMAGES_PER_MESSAGE = 32
BYTES_PER_MESSAGE = 8 << 20


@dataclass(frozen=True)
class LoadedPixels:
    """One image, ready to encode: `pixels` is uint8 RGB [size, size, 3]."""

    index: int
    key: str
    label: int | None
    pixels: np.ndarray


def iterate_pixels(
    source: ImageSource,
    indices: Sequence[int],
    preprocessing: Preprocessing,
    workers: int = 0,
) -> Iterator[LoadedPixels | UnreadableImage]:
    """Yield one item for each of `indices`, in their order, the same for any number of workers.

    An image that cannot be used is yielded as its UnreadableImage; a source that breaks raises
    JobError. `workers` processes decode ahead; with 0 the calling process does it.
    """
    if workers < 0:
        raise UserError(f"The number of workers is {workers}; give 0 or more.")
    loading = _Loading(source, preprocessing)
    alone = map(loading.__getitem__, indices)
    for result in _from_workers(loading, indices, workers) if workers else alone:
        if isinstance(result, UserError | JobError):
            raise result
        yield result


def read_pixels(
    source: ImageSource,
    preprocessing: Preprocessing,
    limit: int | None = None,
    workers: int = 0,
) -> tuple[np.ndarray, list[UnreadableImage]]:
    """All images of a source, or its first `limit`, in memory.

    Returns uint8 RGB [N, size, size, 3] of those that can be read, and the others.
    """
    count = len(source) if limit is None else min(limit, len(source))
    pixels = np.empty((count, preprocessing.size, preprocessing.size, 3), dtype=np.uint8)
    unreadable: list[UnreadableImage] = []
    filled = 0
    for item in iterate_pixels(source, range(count), preprocessing, workers):
        if isinstance(item, UnreadableImage):
            unreadable.append(item)
        else:
            pixels[filled] = item.pixels
            filled += 1
    return pixels[:filled], unreadable


_Result = LoadedPixels | UnreadableImage | UserError | JobError


class _Loading(Dataset[_Result]):
    """Loads by index; errors are results here, because a worker would wrap what it raises."""

    def __init__(self, source: ImageSource, preprocessing: Preprocessing) -> None:
        self.source = source
        self.preprocessing = preprocessing

    def __getitem__(self, index: int) -> _Result:
        try:
            loaded = self.source.load(index)
        except (UnreadableImage, UserError, JobError) as error:
            return error
        pixels = self.preprocessing.to_pixels(loaded.image)
        return LoadedPixels(index, loaded.key, loaded.label, pixels)


def _from_workers(loading: _Loading, indices: Sequence[int], workers: int) -> Iterator[_Result]:
    image_bytes = 3 * loading.preprocessing.size**2
    loader = DataLoader(
        loading,
        batch_size=max(1, min(IMAGES_PER_MESSAGE, BYTES_PER_MESSAGE // image_bytes)),
        sampler=indices,
        num_workers=workers,
        collate_fn=list,
        # the workers run no torch operation, so a fork is safe; it saves importing torch again
        multiprocessing_context="fork" if sys.platform == "linux" else None,
        worker_init_fn=partial(_begin_worker, os.getpid()),
        generator=torch.Generator(),  # otherwise opening a loader moves the global random state
    )
    try:
        for message in loader:
            yield from message
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise JobError(
            f"A worker process that reads images ended ({str(error).partition(chr(10))[0]}); "
            "run again with fewer workers, most often the memory was short."
        ) from error


def _begin_worker(parent: int, worker: int) -> None:
    """A worker lives as long as its parent: not shorter, and not longer.

    Schedulers and terminals send their signals to the whole group of processes. The parent saves
    and stops then, and needs its workers until it has; a second SIGTERM is the parent's own.
    """

    def end_with_parent() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)  # it would wait for ever to hand over

    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, _: signal.signal(number, signal.SIG_DFL))
    name = f"watch of worker {worker}"
    threading.Thread(target=end_with_parent, name=name, daemon=True).start()
