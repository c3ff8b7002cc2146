"""Reading a store: exact, endless, seekable batches, whatever the number of ranks and workers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from autoencoder.remote import RemoteFolder, is_remote
from autoencoder.store.chunks import ChunkReader
from autoencoder.store.layout import SampleInfo
from autoencoder.store.local import LocalShards, read_manifest
from autoencoder.store.manifest import Manifest
from autoencoder.store.memory import WholeStore, fits_in_memory
from autoencoder.store.order import StreamOrder
from autoencoder.store.remote import RemoteShards, fetch_manifest
from autoencoder.store.statistics import Standardisation
from autoencoder.store.stream import BatchMaker, LatentBatch, run_stream
from latentddm.engine.errors import UserError

if TYPE_CHECKING:
    from autoencoder.models import Autoencoder

_WINDOW_SAMPLES = 2048
_WINDOW_BYTES = 64 << 20


def open_location(
    location: str | Path, cache: str | Path | None = None
) -> tuple[Manifest, LocalShards | RemoteShards]:
    """The manifest of a store and the way to its shards, none of which is touched yet."""
    if is_remote(location):
        remote = RemoteFolder(str(location))
        manifest = fetch_manifest(remote)
        return manifest, RemoteShards(remote, manifest, cache)
    manifest = read_manifest(Path(location))
    return manifest, LocalShards(Path(location), manifest)


class LatentStore:
    """A finished store, in a folder or behind a URL that fsspec knows (https://, s3://, ...).

    cache: the folder for the shards of a remote store (default: LATENTDDM_CACHE or ~/.cache).
    memory: bytes of memory that latents may occupy once read; None is a quarter of what is free,
    0 always reads from the shards.

    UserError: there is no store, or a newer version's. JobError: it is damaged or incomplete.
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
        """One latent: (channels, height, width)."""
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
        """The fingerprint of the autoencoder that made the latents."""
        return str(self.manifest.plan.autoencoder["fingerprint"])

    def standardise(self, raw: torch.Tensor) -> torch.Tensor:
        """Raw latents [..., C, H, W] to model space, float32."""
        return self.conversion.standardise(raw)

    def restore(self, model_space: torch.Tensor) -> torch.Tensor:
        """Model space [..., C, H, W] back to raw latents, float32."""
        return self.conversion.restore(model_space)

    def check_autoencoder(self, autoencoder: Autoencoder) -> None:
        """UserError naming both fingerprints if another autoencoder made these latents."""
        if autoencoder.fingerprint != self.fingerprint:
            reference = self.manifest.plan.autoencoder["reference"]
            raise UserError(
                f"The store was made with the autoencoder {reference} ({self.fingerprint}) and "
                f"this is {autoencoder.reference} ({autoencoder.fingerprint}); use the one that "
                "made the store."
            )

    def info(self, index: int) -> SampleInfo:
        """Key, label and source index of sample `index` of the store."""
        if not 0 <= index < len(self):
            raise UserError(f"The store has samples 0 to {len(self) - 1}, not {index}.")
        chunk, row = self._reader.table.chunk_of(index)
        _, infos = self._read_chunk(chunk)
        return infos[row]

    def key(self, index: int) -> str:
        """The key that sample `index` of the store had in its source."""
        return self.info(index).key

    def raw(self, start: int, stop: int) -> torch.Tensor:
        """Raw latents of the samples `start` to `stop` in store order, float32 [stop-start,C,H,W].

        Those of the unmirrored view; of a store of moments the means. Reads the chunks that hold
        them, the last of which is kept: reading on from `stop` does not read it again.
        """
        if not 0 <= start < stop <= len(self):
            raise UserError(f"The store has samples 0 to {len(self)}, not {start} to {stop}.")
        channels, parts, done = self.shape[0], [], start
        while done < stop:
            chunk, row = self._reader.table.chunk_of(done)
            if self._kept is None or self._kept[0] != chunk:
                self._kept = chunk, self._read_chunk(chunk)[0][0]
            rows = self._kept[1][row : row + stop - done]
            parts.append(torch.from_numpy(rows[:, :channels]).float())
            done += len(rows)
        return torch.cat(parts)

    def chunks(self) -> Iterator[tuple[list[np.ndarray], list[SampleInfo]]]:
        """All chunks in store order: one stored array per view, and what is known of the samples.

        The order of the store, raw values, every byte checked: for measuring and for export.
        """
        return (self._read_chunk(chunk) for chunk in range(len(self._reader.table)))

    def stream(
        self,
        batch_size: int,
        seed: int = 0,
        start: int = 0,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        window_samples: int | None = None,
    ) -> Iterator[LatentBatch]:
        """Endless batches of `batch_size` samples for this rank.

        start: images seen by all ranks together. The sample at every position, its view and its
        noise follow from (store, seed, window_samples) alone: neither the number of ranks nor
        of workers nor the way a position was reached changes them. Epochs follow each other
        without a gap; every epoch holds each sample once. workers: threads that prepare batches
        ahead. window_samples: how many samples are shuffled together (default 2,048, fewer where
        latents are large).
        """
        self._check(batch_size, start, rank, world_size, workers)
        layout = self.manifest.plan.layout
        if window_samples is None:
            stored = layout.row_bytes * len(layout.views)
            window_samples = max(1, min(_WINDOW_SAMPLES, _WINDOW_BYTES // stored))
        elif window_samples < 1:
            raise UserError(f"window_samples must be at least 1, not {window_samples}.")
        table = self._reader.table
        maker = BatchMaker(
            self._reader,
            StreamOrder(table.samples, seed, window_samples, len(layout.views)),
            self.conversion,
            seed=seed,
            labelled=self.manifest.labelled > 0,
            whole=self._in_memory(),
            # Threads may stand two windows apart.
            windows_kept=1 if workers == 0 else 3,
        )
        first, step = start + rank * batch_size, world_size * batch_size
        return run_stream(maker.make, batch_size, first, step, workers)

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
    def _check(batch_size: int, start: int, rank: int, world_size: int, workers: int) -> None:
        if batch_size < 1 or start < 0 or workers < 0:
            raise UserError(
                f"batch_size {batch_size}, start {start} and workers {workers} must not be "
                "negative, and a batch has at least one sample."
            )
        if not 0 <= rank < world_size:
            raise UserError(f"rank {rank} is not one of {world_size} processes.")
