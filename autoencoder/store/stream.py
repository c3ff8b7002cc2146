"""Batches of a store for ever: which samples, out of which window, in model space."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count, islice

import numpy as np
import torch

from autoencoder.store.chunks import ChunkReader
from autoencoder.store.memory import Rows, WholeStore, Windows
from autoencoder.store.order import StreamOrder, Window
from autoencoder.store.statistics import Standardisation
from latentddm.engine.seeding import numpy_generator


@dataclass(frozen=True)
class LatentBatch:
    """A batch of the stream.

    raw: [B,C,H,W] as stored (float16 most often), or as drawn from the moments. labels: int64 [B],
    -1 for a sample without one; None if the store has no labels. indices: int64 [B], where in the
    store each sample lies.
    """

    raw: torch.Tensor
    labels: torch.Tensor | None
    indices: torch.Tensor
    conversion: Standardisation

    @cached_property
    def latents(self) -> torch.Tensor:
        """Float32 [B,C,H,W] in model space, on the device of `raw`."""
        return self.conversion.standardise(self.raw)

    def to(self, device: torch.device | str) -> LatentBatch:
        """The batch on `device`; what travels is `raw`, half as large as `latents`."""
        labels = None if self.labels is None else self.labels.to(device, non_blocking=True)
        return replace(
            self,
            raw=self.raw.to(device, non_blocking=True),
            labels=labels,
            indices=self.indices.to(device, non_blocking=True),
        )


class BatchMaker:
    """Makes the batch at any position. Threads may call it at once; the result is the same."""

    def __init__(
        self,
        reader: ChunkReader,
        order: StreamOrder,
        conversion: Standardisation,
        *,
        seed: int,
        labelled: bool,
        whole: WholeStore | None,
        windows_kept: int,
    ) -> None:
        self._reader = reader
        self._order = order
        self._conversion = conversion
        self._seed = seed
        self._labelled = labelled
        self._whole = whole
        self._loader = Windows(reader, labelled)
        self._windows = _Recent(windows_kept, self._open)

    def make(self, position: int, size: int) -> LatentBatch:
        """The samples at positions [position, position + size)."""
        layout = self._reader.layout
        rows_out = torch.empty((size, *layout.row_shape), dtype=getattr(torch, layout.dtype))
        indices = np.empty(size, dtype=np.int64)
        labels = np.empty(size, dtype=np.int64) if self._labelled else None
        done = 0
        for segment in self._order.segments(position, size):
            window, rows = self._windows.get((segment.epoch, segment.window))
            chosen = window.rows[segment.begin : segment.end]
            views = window.views[segment.begin : segment.end]
            part = slice(done, done + len(chosen))
            indices[part] = self._store_indices(window, chosen)
            where = chosen if self._whole is None else indices[part]
            rows.gather(where, views, rows_out[part])
            if labels is not None and rows.labels is not None:
                labels[part] = rows.labels[where]
            done = part.stop
            del window, rows  # so that the next window may have the memory of this one
        raw = self._draw(rows_out, position) if layout.contents == "moments" else rows_out
        given = None if labels is None else torch.from_numpy(labels)
        return LatentBatch(raw, given, torch.from_numpy(indices), self._conversion)

    def _open(self, key: tuple[int, int]) -> tuple[Window, Rows]:
        window = self._order.window(*key)
        if self._whole is None:
            return window, self._loader.load(window)
        self._whole.load(window.chunks)
        return window, self._whole.rows

    def _store_indices(self, window: Window, rows: np.ndarray) -> np.ndarray:
        """Rows of a window to indices of the store."""
        chunk = np.searchsorted(window.starts, rows, side="right") - 1
        return rows - window.starts[chunk] + self._reader.table.begin[window.chunks[chunk]]

    def _draw(self, moments: torch.Tensor, position: int) -> torch.Tensor:
        """One draw from each posterior, with noise that belongs to the position."""
        mean, log_variance = moments.float().chunk(2, dim=1)
        noise = np.stack(
            [
                numpy_generator(self._seed, "posterior", position + sample).standard_normal(
                    mean.shape[1:], dtype=np.float32
                )
                for sample in range(len(mean))
            ]
        )
        return mean + torch.exp(0.5 * log_variance) * torch.from_numpy(noise)


def run_stream(
    make: Callable[[int, int], LatentBatch], size: int, start: int, step: int, workers: int
) -> Iterator[LatentBatch]:
    """Batches of `size` samples at positions start, start + step, ...; `workers` threads run ahead.

    Threads suffice: reading, checking and converting release Python's lock.
    """
    positions = count(start, step)
    if workers == 0:
        yield from (make(position, size) for position in positions)
    with ThreadPoolExecutor(workers) as pool:
        ahead: deque[Future[LatentBatch]] = deque()
        try:
            while True:
                for position in islice(positions, 2 * workers - len(ahead)):
                    ahead.append(pool.submit(make, position, size))
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


class _Recent:
    """The last few windows, each opened once even if several threads ask for it."""

    def __init__(
        self, size: int, open_window: Callable[[tuple[int, int]], tuple[Window, Rows]]
    ) -> None:
        self._size = size
        self._open = open_window
        self._kept: OrderedDict[tuple[int, int], Future[tuple[Window, Rows]]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple[int, int]) -> tuple[Window, Rows]:
        with self._lock:
            mine = key not in self._kept
            future = self._kept.setdefault(key, Future())
            self._kept.move_to_end(key)
            while len(self._kept) > self._size:
                self._kept.popitem(last=False)
        if mine:
            try:
                future.set_result(self._open(key))
            except BaseException as error:
                with self._lock:
                    self._kept.pop(key, None)
                future.set_exception(error)
                raise
        return future.result()
