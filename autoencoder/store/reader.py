"""Reading of a store: exact, endless, seekable batches for any number of ranks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from autoencoder.store.chunks import ChunkReader
from autoencoder.store.layout import SampleInfo
from autoencoder.store.locations import LocalShards, open_location
from autoencoder.store.memory import WholeStore, fits_in_memory
from autoencoder.store.order import StreamOrder
from autoencoder.store.statistics import Standardisation
from autoencoder.store.stream import BatchMaker, LatentBatch
from latentddm.engine.errors import UserError

_WINDOW_SAMPLES = 2048
_WINDOW_BYTES = 64 << 20


class LatentStore:
    """A complete store, in a folder or at a URL supported by fsspec (https://, s3://, ...).

    cache: folder for the shards of a remote store (default: LATENTDDM_CACHE or ~/.cache). memory:
    bytes of latents that may stay in memory once read; None: a quarter of the free memory, 0: all
    reads are from the shards.

    UserError for no store, an unfinished one, or a newer version; JobError for a damaged store.
    """

    def __init__(
        self, location: str | Path, *, cache: str | Path | None = None, memory: int | None = None
    ) -> None:
        self.manifest, files = open_location(location, cache)
        if isinstance(files, LocalShards):
            files.check_sizes()
        self.conversion = Standardisation(self.manifest.mean, self.manifest.std)
        self._reader = ChunkReader(self.manifest, files)
        self._memory = memory
        self._whole: WholeStore | None = None
        self._decided = False
        self._kept: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return self.manifest.samples

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of one latent: (channels, height, width)."""
        return self.manifest.plan.layout.shape

    @property
    def mean(self) -> torch.Tensor:
        """Mean of the raw latents per channel, float32 [C]."""
        return self.conversion.mean

    @property
    def std(self) -> torch.Tensor:
        """Standard deviation of the raw latents per channel, float32 [C]."""
        return self.conversion.std

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the autoencoder of these latents."""
        return str(self.manifest.plan.autoencoder["fingerprint"])

    def standardise(self, raw: torch.Tensor) -> torch.Tensor:
        """Raw latents [..., C, H, W] -> model space, float32."""
        return self.conversion.standardise(raw)

    def restore(self, model_space: torch.Tensor) -> torch.Tensor:
        """Model space [..., C, H, W] -> raw latents, float32."""
        return self.conversion.restore(model_space)

    def info(self, index: int) -> SampleInfo:
        """Key, label and source index of sample `index` of the store."""
        if not 0 <= index < len(self):
            raise UserError(
                f"Sample {index} does not exist; the store has samples 0 to {len(self) - 1}."
            )
        chunk, row = self._reader.table.chunk_of(index)
        _, infos = self._read_chunk(chunk)
        return infos[row]

    def key(self, index: int) -> str:
        """The key, in the source, of sample `index` of the store."""
        return self.info(index).key

    def raw(self, start: int, stop: int) -> torch.Tensor:
        """Raw latents of the samples `start` to `stop` in store order, float32 [stop-start,C,H,W].

        From the unmirrored view; the means, in a store of moments. The last chunk is kept, so that
        reading on from `stop` does not read it again.
        """
        if not 0 <= start < stop <= len(self):
            raise UserError(
                f"Samples {start} to {stop} do not exist; the store has samples 0 to {len(self)}."
            )
        channels, parts, done = self.shape[0], [], start
        while done < stop:
            chunk, row = self._reader.table.chunk_of(done)
            if self._kept is None or self._kept[0] != chunk:
                self._kept = chunk, self._read_chunk(chunk)[0][0]
            rows = self._kept[1][row : row + stop - done]
            parts.append(torch.from_numpy(rows[:, :channels]).float())
            done += len(rows)
        return torch.cat(parts)

    def stream(
        self,
        batch_size: int,
        seed: int = 0,
        start: int = 0,
        rank: int = 0,
        world_size: int = 1,
        window_samples: int | None = None,
        pinned: bool = False,
    ) -> Iterator[LatentBatch]:
        """Endless batches of `batch_size` samples for this rank.

        start: images seen by all ranks together. The sample at a position, its view and its noise
        are functions of (store, seed, window_samples) alone, not of the number of ranks or of the
        way to this position. Epochs follow each other without a gap and hold every sample once.
        window_samples: samples that are shuffled together (default 2,048, fewer for large latents).
        pinned: batches lie in page-locked memory, from which a GPU fetches them on its own.
        """
        self._check(batch_size, start, rank, world_size)
        layout = self.manifest.plan.layout
        if window_samples is None:
            stored = layout.row_bytes * len(layout.views)
            window_samples = max(1, min(_WINDOW_SAMPLES, _WINDOW_BYTES // stored))
        elif window_samples < 1:
            raise UserError(f"window_samples is {window_samples}; give 1 or more.")
        table = self._reader.table
        maker = BatchMaker(
            self._reader,
            StreamOrder(table.samples, seed, window_samples, len(layout.views)),
            self.conversion,
            seed=seed,
            labelled=self.manifest.labelled > 0,
            whole=self._in_memory(),
            pinned=pinned,
        )
        return maker.stream(batch_size, start + rank * batch_size, world_size * batch_size)

    def sample(self, count: int, seed: int) -> torch.Tensor:
        """The first latents of the order of `seed`, [count, C, H, W]; all if there are fewer."""
        return next(self.stream(min(count, len(self)), seed=seed)).latents

    def _in_memory(self) -> WholeStore | None:
        if not self._decided:
            if fits_in_memory(len(self), self.manifest.plan.layout, self._memory):
                self._whole = WholeStore(self._reader, self.manifest.labelled > 0)
            self._decided = True
        return self._whole

    def _read_chunk(self, chunk: int) -> tuple[list[np.ndarray], list[SampleInfo]]:
        layout = self.manifest.plan.layout
        shape = (int(self._reader.table.samples[chunk]), *layout.row_shape)
        views = [np.empty(shape, dtype=layout.dtype) for _ in layout.views]
        return views, self._reader.read(chunk, views, with_infos=True)

    @staticmethod
    def _check(batch_size: int, start: int, rank: int, world_size: int) -> None:
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}; give 1 or more.")
        if start < 0:
            raise UserError(f"start is {start}; give 0 or more images seen.")
        if not 0 <= rank < world_size:
            raise UserError(f"rank is {rank}; give 0 to {world_size - 1}, below world_size.")
