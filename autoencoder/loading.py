"""Pixels of a source's images in a given order, decoded in worker processes."""

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

# Several images per message between processes, for less overhead; bounded in bytes, so that a queue
# of images of 1024 pixels stays small.
IMAGES_PER_MESSAGE = 32
BYTES_PER_MESSAGE = 8 << 20


@dataclass(frozen=True)
class LoadedPixels:
    """One preprocessed image; pixels: uint8 RGB [size, size, 3]."""

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
    """One item for each of `indices`, in order and independent of the number of workers.

    An unreadable image is yielded as UnreadableImage; a broken source raises JobError. workers:
    processes that decode ahead; 0 decodes in the calling process.
    """
    if workers < 0:
        raise UserError(f"The number of workers is {workers}; give 0 or more.")
    loading = _Loading(source, preprocessing)
    serial = map(loading.__getitem__, indices)
    for result in _from_workers(loading, indices, workers) if workers else serial:
        if isinstance(result, UserError | JobError):
            raise result
        yield result


def read_pixels(
    source: ImageSource,
    preprocessing: Preprocessing,
    limit: int | None = None,
    workers: int = 0,
) -> tuple[np.ndarray, list[UnreadableImage]]:
    """All images of a source, or the first `limit`, in memory.

    Returns pixels uint8 RGB [N, size, size, 3] of the readable images, and the unreadable ones.
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
    """Loading by index; errors are returned, since torch's workers wrap raised ones."""

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
        # a fork is safe, since workers run no torch operation, and saves the import of torch
        multiprocessing_context="fork" if sys.platform == "linux" else None,
        worker_init_fn=partial(_begin_worker, os.getpid()),
        generator=torch.Generator(),  # the default would advance the global random state
    )
    try:
        for message in loader:
            yield from message
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise JobError(
            f"A process that decodes images ended ({str(error).partition(chr(10))[0]}), most often "
            "out of memory; run again with fewer workers."
        ) from error


def _begin_worker(parent: int, worker: int) -> None:
    """Tie the lifetime of a worker process to that of its parent.

    Schedulers and terminals signal the whole process group. The parent then saves and stops, and
    depends on its workers until that is done; a second SIGTERM, from the parent, ends a worker.
    """

    def end_with_parent() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)  # a regular exit would block on the queue of the dead parent

    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, _: signal.signal(number, signal.SIG_DFL))
    name = f"watch of worker {worker}"
    threading.Thread(target=end_with_parent, name=name, daemon=True).start()
