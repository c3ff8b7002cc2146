"""The endless order of a stream: the sample at every position, by arithmetic alone.

An epoch visits the chunks in a seeded permutation. Consecutive chunks form a mixing window, whose
samples are shuffled together. The sample at a position is therefore a function of the seed and of
one window, independent of all reads before it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from latentddm.engine.seeding import numpy_generator


@dataclass(frozen=True)
class Window:
    """A group of chunks that are shuffled together.

    chunks: chunk numbers in reading order. starts: the first row of each in the window. rows: the
    shuffled order; the i-th sample of the window is row `rows[i]`. views: the stored view of the
    i-th sample.
    """

    epoch: int
    number: int
    chunks: np.ndarray
    starts: np.ndarray
    rows: np.ndarray
    views: np.ndarray


@dataclass(frozen=True)
class Segment:
    """The part of a batch in one window: samples [begin, end) of its shuffled order."""

    epoch: int
    window: int
    begin: int
    end: int


@dataclass(frozen=True)
class _Epoch:
    chunks: np.ndarray  # the permutation of chunk numbers
    bounds: np.ndarray  # window w holds chunks[bounds[w]:bounds[w + 1]]
    positions: np.ndarray  # and the samples [positions[w], positions[w + 1]) of the epoch


class StreamOrder:
    """The order of a store's samples: a function of (chunk sizes, seed, window size)."""

    def __init__(
        self, chunk_sizes: np.ndarray, seed: int, window_samples: int, views: int = 1
    ) -> None:
        self.samples = int(chunk_sizes.sum())
        self._sizes = chunk_sizes
        self._seed = seed
        self._views = views
        self._windows = max(1, round(self.samples / window_samples))
        self._epochs: dict[int, _Epoch] = {}

    def segments(self, position: int, count: int) -> Iterator[Segment]:
        """The windows of the samples at positions [position, position + count)."""
        while count > 0:
            number, inside = divmod(position, self.samples)
            epoch = self._epoch(number)
            window = int(np.searchsorted(epoch.positions, inside, side="right")) - 1
            begin = inside - int(epoch.positions[window])
            end = min(begin + count, int(epoch.positions[window + 1] - epoch.positions[window]))
            yield Segment(number, window, begin, end)
            position += end - begin
            count -= end - begin

    def window(self, epoch: int, number: int) -> Window:
        """The chunks and the shuffled order of one window."""
        layout = self._epoch(epoch)
        chunks = layout.chunks[layout.bounds[number] : layout.bounds[number + 1]]
        ends = np.cumsum(self._sizes[chunks])
        total = int(ends[-1])
        rows = numpy_generator(self._seed, "window", epoch, number).permutation(total)
        views = np.zeros(total, dtype=np.int64)
        if self._views > 1:
            draw = numpy_generator(self._seed, "views", epoch, number)
            views = draw.integers(self._views, size=total)
        return Window(epoch, number, chunks, ends - self._sizes[chunks], rows, views)

    def _epoch(self, number: int) -> _Epoch:
        if number not in self._epochs:
            chunks = numpy_generator(self._seed, "chunks", number).permutation(len(self._sizes))
            starts = np.concatenate([[0], np.cumsum(self._sizes[chunks])])
            owner = starts[:-1] * self._windows // self.samples
            bounds = np.flatnonzero(np.diff(owner, prepend=-1))
            bounds = np.append(bounds, len(chunks))
            self._epochs = {
                **dict(list(self._epochs.items())[-1:]),
                number: _Epoch(chunks, bounds, starts[bounds]),
            }
        return self._epochs[number]
