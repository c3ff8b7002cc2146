"""The writing of one shard: from rows to packed chunks, a tar and its record."""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from autoencoder.store.layout import END_OF_ARCHIVE, ChunkFormat, SampleInfo, pack_chunk
from autoencoder.store.manifest import ChunkEntry, ShardEntry, Unreadable
from autoencoder.store.statistics import ChannelStatistics
from latentddm.engine.atomic_io import read_json, write_bytes, write_json
from latentddm.engine.errors import JobError

RECORDS = "encoding"


def shard_name(number: int) -> str:
    return f"latents-{number:06d}.tar"


def record_path(folder: Path, number: int) -> Path:
    """The record of a finished shard, with its part of the manifest."""
    return folder / RECORDS / f"latents-{number:06d}.json"


@dataclass(frozen=True)
class ShardRecord:
    """The contribution of a finished shard to the manifest."""

    entry: ShardEntry
    statistics: ChannelStatistics
    labelled: int
    unreadable: tuple[Unreadable, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "shard": self.entry.to_json(),
            "statistics": self.statistics.to_json(),
            "labelled": self.labelled,
            "unreadable": [vars(image) for image in self.unreadable],
        }


def read_record(folder: Path, number: int) -> ShardRecord | None:
    """The record of a finished shard; None before.

    A shard is finished if its record exists and its tar has the recorded size.
    """
    path = record_path(folder, number)
    if not path.exists():
        return None
    value = read_json(path)
    try:
        entry = ShardEntry.from_json(value["shard"])
        record = ShardRecord(
            entry,
            ChannelStatistics.from_json(value["statistics"]),
            int(value["labelled"]),
            tuple(Unreadable(**image) for image in value["unreadable"]),
        )
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise JobError(f"{path} is damaged ({error}); delete it and run again.") from None
    shard = folder / entry.name
    whole = shard.exists() and shard.stat().st_size == entry.bytes
    return record if whole else None


@dataclass
class ShardBuilder:
    """The rows of shard `number`, added in order and packed chunk by chunk."""

    number: int
    first: int
    batch_size: int
    layout: ChunkFormat
    _packed: list[bytes] = field(default_factory=list)
    _chunks: list[ChunkEntry] = field(default_factory=list)
    _rows: list[list[np.ndarray]] = field(default_factory=list)  # one list of views per sample
    _infos: list[SampleInfo] = field(default_factory=list)
    _unreadable: list[Unreadable] = field(default_factory=list)
    _statistics: list[ChannelStatistics] = field(default_factory=list)
    _labelled: int = 0

    def add(self, views: list[np.ndarray], infos: list[SampleInfo]) -> None:
        """Add samples; `views` holds one [B, *row_shape] array per view."""
        for row, info in enumerate(infos):
            self._rows.append([values[row] for values in views])
            self._infos.append(info)
            if len(self._infos) == self.layout.chunk_samples:
                self._pack()

    def skip(self, image: Unreadable) -> None:
        self._unreadable.append(image)

    def write(self, folder: Path) -> None:
        """Write the tar, then its record, each atomically."""
        record = self.record()
        write_bytes(folder / record.entry.name, b"".join(self._packed) + END_OF_ARCHIVE)
        write_json(record_path(folder, self.number), record.to_json())

    def record(self) -> ShardRecord:
        """The record of the shard with all rows added so far."""
        if self._infos:
            self._pack()
        digest = hashlib.sha256()
        for part in (*self._packed, END_OF_ARCHIVE):
            digest.update(part)
        entry = ShardEntry(
            name=shard_name(self.number),
            samples=sum(chunk.samples for chunk in self._chunks),
            bytes=sum(map(len, self._packed)) + len(END_OF_ARCHIVE),
            sha256=digest.hexdigest(),
            batch_size=self.batch_size,
            chunks=tuple(self._chunks),
        )
        statistics = ChannelStatistics.merged(self._statistics, self.layout.shape[0])
        return ShardRecord(entry, statistics, self._labelled, tuple(self._unreadable))

    def _pack(self) -> None:
        views = [np.stack(rows) for rows in zip(*self._rows, strict=True)]
        first = self.first + len(self._chunks) * self.layout.chunk_samples
        data = pack_chunk(first, views, self._infos, self.layout)
        offset = sum(len(part) for part in self._packed)
        self._packed.append(data)
        self._chunks.append(ChunkEntry(len(self._infos), offset, zlib.crc32(data)))
        for values in views:
            self._statistics.append(ChannelStatistics.of_chunk(values, self.layout.contents))
        self._labelled += sum(info.label is not None for info in self._infos)
        self._rows, self._infos = [], []
