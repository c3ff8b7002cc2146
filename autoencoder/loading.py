"""Pixels of a source's images in a given order, decoded in worker processes."""

from __future__ import annotations

import traceback
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice

import numpy as np

from autoencoder.preprocessing import Preprocessing
from autoencoder.sources.protocol import ImageSource, UnreadableImage
from autoencoder.worker_processes import WorkerTraceback, map_in_workers
from latentddm.engine.errors import JobError, UserError, unexpected

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
) -> Generator[LoadedPixels | UnreadableImage, None, None]:
    """One item for each of `indices`, in order and independent of the number of workers.

    An unreadable image is yielded as UnreadableImage; a broken source raises JobError. workers:
    processes that decode ahead, which end with this iterator; 0 decodes in the calling process.
    """
    if workers < 0:
        raise UserError(f"The number of workers is {workers}; give 0 or more.")
    loading = _Loading(source, preprocessing)
    if workers:
        messages = map_in_workers(loading, _divided(indices, preprocessing.size), workers)
    else:
        messages = (loading([index]) for index in indices)
    with closing(messages):
        for message in messages:
            for result in message:
                if isinstance(result, _Failure):
                    raise result.error from WorkerTraceback(result.trace)
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


@dataclass(frozen=True)
class _Failure:
    """An error that ends the stream, behind the images before it; with its traceback as text."""

    error: UserError | JobError
    trace: str


_Result = LoadedPixels | UnreadableImage | _Failure


class _Loading:
    """The images of several indices, up to the first failure."""

    def __init__(self, source: ImageSource, preprocessing: Preprocessing) -> None:
        self.source = source
        self.preprocessing = preprocessing

    def __call__(self, indices: Sequence[int]) -> list[_Result]:
        results: list[_Result] = []
        for index in indices:
            results.append(self._load(index))
            if isinstance(results[-1], _Failure):
                break
        return results

    def _load(self, index: int) -> _Result:
        try:
            loaded = self.source.load(index)
            pixels = self.preprocessing.to_pixels(loaded.image)
        except UnreadableImage as error:
            return error
        except (UserError, JobError) as error:
            return _Failure(error, traceback.format_exc())
        except MemoryError:
            raise
        except Exception as error:
            what = f"Loading the image {self.source.key(index)} of {self.source.name} failed"
            return _Failure(unexpected(error, what), traceback.format_exc())
        return LoadedPixels(index, loaded.key, loaded.label, pixels)


def _divided(indices: Sequence[int], size: int) -> Iterator[list[int]]:
    """The indices of each message between processes; `indices` may be endless."""
    count = max(1, min(IMAGES_PER_MESSAGE, BYTES_PER_MESSAGE // (3 * size**2)))
    rest = iter(indices)
    while message := list(islice(rest, count)):
        yield message
