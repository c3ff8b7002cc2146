"""Rows of chunks in memory: the mixing window of a stream, or the whole store."""

from __future__ import annotations

import logging
import os
import weakref
from collections import deque
from pathlib import Path

import numpy as np
import psutil
import torch

from autoencoder.store.chunks import ChunkReader
from autoencoder.store.layout import ChunkFormat
from autoencoder.store.order import Window

_LOG = logging.getLogger("latentddm")
_CGROUP = Path("/sys/fs/cgroup")
UNLABELLED = -1


class Rows:
    """A buffer for the rows of some samples: latents per view, and labels in a labelled store.

    values: stored rows [views, samples, *row_shape].
    """

    def __init__(self, reader: ChunkReader, values: torch.Tensor, labelled: bool) -> None:
        self.values = values
        self.labels = np.full(values.shape[1], UNLABELLED, np.int64) if labelled else None
        self._reader = reader
        self._arrays = values.numpy()
        self._flat = values.flatten(0, 1)

    def load(self, chunk: int, start: int) -> None:
        """Read `chunk` into the rows from `start` on."""
        stop = start + int(self._reader.table.samples[chunk])
        views = [view[start:stop] for view in self._arrays]
        infos = self._reader.read(chunk, views, with_infos=self.labels is not None)
        if self.labels is not None:
            known = [UNLABELLED if info.label is None else info.label for info in infos]
            self.labels[start:stop] = known

    def gather(self, rows: np.ndarray, views: np.ndarray, out: torch.Tensor) -> torch.Tensor:
        """Copy the stored rows at `rows`, each from its own view, to `out` [B, *row_shape]."""
        # One flat index over views and samples, views first.
        flat = rows if len(self.values) == 1 else views * self.values.shape[1] + rows
        return torch.index_select(self._flat, 0, torch.from_numpy(flat), out=out)


def new_values(reader: ChunkReader, samples: int) -> torch.Tensor:
    """An uninitialised buffer for the rows of `samples` samples."""
    layout = reader.layout
    shape = (len(layout.views), samples, *layout.row_shape)
    return torch.empty(shape, dtype=getattr(torch, layout.dtype))


class WholeStore:
    """The store in memory, loaded chunk by chunk on first use."""

    def __init__(self, reader: ChunkReader, labelled: bool) -> None:
        values = new_values(reader, int(reader.table.samples.sum()))
        self.rows = Rows(reader, values, labelled)
        self._reader = reader
        self._loaded = np.zeros(len(reader.table), dtype=bool)

    def load(self, chunks: np.ndarray) -> None:
        """Load the missing ones of `chunks`."""
        missing = chunks[~self._loaded[chunks]]
        if len(missing):
            self._reader.prepare(missing)
        for chunk in missing:
            self.rows.load(int(chunk), int(self._reader.table.begin[chunk]))
            self._loaded[chunk] = True


class Windows:
    """Loading of mixing windows, with reuse of the memory of released ones.

    The allocation of new memory takes as much time as reading into it.
    """

    def __init__(self, reader: ChunkReader, labelled: bool) -> None:
        self._reader = reader
        self._labelled = labelled
        self._spare: deque[torch.Tensor] = deque(maxlen=2)

    def load(self, window: Window) -> Rows:
        """The rows of a window's chunks, in its order."""
        self._reader.prepare(window.chunks)
        buffer = self._buffer(len(window.rows))
        rows = Rows(self._reader, buffer, self._labelled)
        for chunk, start in zip(window.chunks, window.starts, strict=True):
            rows.load(int(chunk), int(start))
        weakref.finalize(rows, self._spare.append, buffer)
        return rows

    def _buffer(self, samples: int) -> torch.Tensor:
        try:
            buffer = self._spare.popleft()
        except IndexError:
            return new_values(self._reader, samples)
        return buffer if buffer.shape[1] >= samples else new_values(self._reader, samples)


def fits_in_memory(samples: int, layout: ChunkFormat, budget: int | None) -> bool:
    """Whether a store of `samples` fits the memory budget, with a line in the log.

    budget: bytes; None: a quarter of the free memory, divided by the processes of this machine.
    """
    if budget is None:
        budget = free_memory() // 4 // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    needed = samples * len(layout.views) * layout.row_bytes
    fits = needed <= budget
    _LOG.info(
        "%.1f MB of latents %s the memory budget of %.1f MB: %s.",
        needed / 1e6,
        "fit" if fits else "do not fit",
        budget / 1e6,
        "they stay in memory once read" if fits else "they are read from the shards",
    )
    return fits


def free_memory() -> int:
    """Free memory in bytes, within the limit of the container if there is one."""
    free = int(psutil.virtual_memory().available)
    try:
        limit = int((_CGROUP / "memory.max").read_text())
        used = int((_CGROUP / "memory.current").read_text())
    except (OSError, ValueError):  # no container, or no limit ("max")
        return free
    return max(0, min(free, limit - used))
