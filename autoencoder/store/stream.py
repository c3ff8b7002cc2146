"""Endless batches of a store: samples by position, from mixing windows, in model space."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count

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

    raw: [B,C,H,W] as stored (float16 by default), or as drawn from the moments. labels: int64 [B],
    -1 for a sample without one; None for a store without labels. indices: int64 [B], the positions
    of the samples in the store.
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
        """The batch on `device`; transfers `raw`, half as large as `latents`.

        Without a wait if it is pinned, see `LatentStore.stream`.
        """
        labels = None if self.labels is None else self.labels.to(device, non_blocking=True)
        return replace(
            self,
            raw=self.raw.to(device, non_blocking=True),
            labels=labels,
            indices=self.indices.to(device, non_blocking=True),
        )


class BatchMaker:
    """Batches by position. The last window is kept, so reading on does not load it again."""

    def __init__(
        self,
        reader: ChunkReader,
        order: StreamOrder,
        conversion: Standardisation,
        *,
        seed: int,
        labelled: bool,
        whole: WholeStore | None,
        pinned: bool = False,
    ) -> None:
        self._pinned = pinned
        self._reader = reader
        self._order = order
        self._conversion = conversion
        self._seed = seed
        self._labelled = labelled
        self._whole = whole
        self._windows = Windows(reader, labelled)
        self._last: tuple[Window, Rows] | None = None

    def make(self, position: int, size: int) -> LatentBatch:
        """The samples at positions [position, position + size)."""
        layout = self._reader.layout
        moments = layout.contents == "moments"
        rows_out = torch.empty(
            (size, *layout.row_shape),
            dtype=getattr(torch, layout.dtype),
            pin_memory=self._pinned and not moments,
        )
        indices = np.empty(size, dtype=np.int64)
        labels = np.empty(size, dtype=np.int64) if self._labelled else None
        done = 0
        for segment in self._order.segments(position, size):
            window, rows = self._open(segment.epoch, segment.window)
            chosen = window.rows[segment.begin : segment.end]
            views = window.views[segment.begin : segment.end]
            part = slice(done, done + len(chosen))
            indices[part] = self._store_indices(window, chosen)
            where = chosen if self._whole is None else indices[part]
            rows.gather(where, views, rows_out[part])
            if labels is not None and rows.labels is not None:
                labels[part] = rows.labels[where]
            done = part.stop
            del window, rows  # frees the memory of this window for the next one
        raw = self._draw(rows_out, position) if moments else rows_out
        given = None if labels is None else torch.from_numpy(labels)
        return LatentBatch(raw, given, torch.from_numpy(indices), self._conversion)

    def stream(self, size: int, start: int, step: int) -> Iterator[LatentBatch]:
        """Endless batches of `size` samples at positions start, start + step, ..."""
        for position in count(start, step):
            yield self.make(position, size)

    def _open(self, epoch: int, number: int) -> tuple[Window, Rows]:
        """Window `number` of an epoch, and the rows that it indexes."""
        if self._last is not None:
            window, rows = self._last
            if (window.epoch, window.number) == (epoch, number):
                return window, rows
            del rows
        self._last = None  # before the next window is loaded into the same memory
        window = self._order.window(epoch, number)
        if self._whole is None:
            rows = self._windows.load(window)
        else:
            self._whole.load(window.chunks)
            rows = self._whole.rows
        self._last = window, rows
        return window, rows

    def _store_indices(self, window: Window, rows: np.ndarray) -> np.ndarray:
        """Rows of a window -> indices of the store."""
        chunk = np.searchsorted(window.starts, rows, side="right") - 1
        return rows - window.starts[chunk] + self._reader.table.begin[window.chunks[chunk]]

    def _draw(self, moments: torch.Tensor, position: int) -> torch.Tensor:
        """One draw from each posterior, with noise derived from the position."""
        mean, log_variance = moments.float().chunk(2, dim=1)
        noise = np.stack(
            [
                numpy_generator(self._seed, "posterior", position + sample).standard_normal(
                    mean.shape[1:], dtype=np.float32
                )
                for sample in range(len(mean))
            ]
        )
        drawn = mean + torch.exp(0.5 * log_variance) * torch.from_numpy(noise)
        return drawn.pin_memory() if self._pinned else drawn
