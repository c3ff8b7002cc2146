"""Reading chunks out of shards: checked bytes, straight into the memory where they are wanted."""

from __future__ import annotations

import io
import zlib
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from autoencoder.store.layout import (
    NPY_HEADER,
    TAR_BLOCK,
    ChunkFormat,
    DamagedChunkError,
    SampleInfo,
    padding,
    parse_infos,
)
from autoencoder.store.manifest import Manifest
from latentddm.engine.errors import JobError

Buffer = TypeVar("Buffer", bytearray, memoryview)


class ShardFiles(Protocol):
    """Where the shards of a store are. advice: what to do about a damaged one."""

    advice: str

    def path(self, shard: int) -> Path:
        """A local file with the bytes of a shard."""

    def prepare(self, shards: list[int]) -> None:
        """Make the coming calls of `path` for `shards` quick."""


class ChunkTable:
    """All chunks of a store in store order, as columns.

    samples: of each chunk. begin: the store index of its first sample. shard: its shard.
    """

    def __init__(self, manifest: Manifest) -> None:
        step, size = manifest.plan.layout.chunk_samples, manifest.plan.shard_samples
        rows = [
            (number, chunk.samples, chunk.offset, chunk.crc32, number * size + index * step)
            for number, shard in enumerate(manifest.shards)
            for index, chunk in enumerate(shard.chunks)
        ]
        columns = np.array(rows, dtype=np.int64).reshape(-1, 5).T
        self.shard, self.samples, self.offset, self.crc32, self.first = columns
        self.begin = np.cumsum(self.samples) - self.samples

    def __len__(self) -> int:
        return len(self.samples)

    def chunk_of(self, index: int) -> tuple[int, int]:
        """The chunk that holds sample `index` of the store, and its row there."""
        chunk = int(np.searchsorted(self.begin, index, side="right")) - 1
        return chunk, index - int(self.begin[chunk])


class ChunkReader:
    """Reads one chunk at a time. Keeps no file open, so it may be shared and forked freely."""

    def __init__(self, manifest: Manifest, files: ShardFiles) -> None:
        self.table = ChunkTable(manifest)
        self.layout: ChunkFormat = manifest.plan.layout
        self._manifest = manifest
        self._files = files
        self._checked = np.zeros(len(self.table), dtype=bool)

    def prepare(self, chunks: np.ndarray) -> None:
        """Fetch what is still missing of the shards of `chunks`."""
        self._files.prepare(np.unique(self.table.shard[chunks]).tolist())

    def read(self, chunk: int, views: list[np.ndarray], with_infos: bool) -> list[SampleInfo]:
        """As `read_checked`, with errors as one sentence that names the shard and the chunk.

        The CRC is computed when a chunk is first read by this process: on some machines it costs
        more than all the rest, and a file does not change between two epochs.
        """
        path = self._files.path(int(self.table.shard[chunk]))
        try:
            infos = self.read_checked(path, chunk, views, with_infos, not self._checked[chunk])
            self._checked[chunk] = True
            return infos
        except DamagedChunkError as error:
            first = int(self.table.first[chunk])
            raise JobError(
                f"{path} is damaged: chunk {first:09d}: {error}; {self._files.advice}."
            ) from None
        except OSError as error:
            raise JobError(f"{path} cannot be read ({error.strerror or error}).") from None

    def read_checked(
        self,
        path: Path,
        chunk: int,
        views: list[np.ndarray],
        with_infos: bool,
        with_crc: bool = True,
    ) -> list[SampleInfo]:
        """Fill `views` (one contiguous [k, *row_shape] array per view) with the rows of `chunk`.

        Returns what is known about its samples, or nothing without `with_infos`. Every byte of
        the chunk, headers included, is checked against the CRC of the manifest; then the headers
        are checked against shape, dtype and names. DamagedChunkError if any differs.
        """
        table = self.table
        samples, first = int(table.samples[chunk]), int(table.first[chunk])
        prefixes, tail, crc = self._read_pieces(path, chunk, views, with_crc)
        if with_crc and crc != int(table.crc32[chunk]):
            raise DamagedChunkError("its checksum does not match the manifest")
        names = self.layout.member_names(first)
        if prefixes != [self.layout.array_prefix(name, samples) for name in names]:
            raise DamagedChunkError("its headers are not those of the manifest")
        return parse_infos(tail, first, samples, self.layout) if with_infos else []

    def _read_pieces(
        self, path: Path, chunk: int, views: list[np.ndarray], with_crc: bool
    ) -> tuple[list[bytes], bytes, int]:
        """The headers before each view, what follows the last view, and the CRC of everything.

        The values of the views land in place, without a copy.
        """
        gap = padding(NPY_HEADER + views[0].nbytes)
        prefixes: list[bytes] = []
        crc = 0
        with open(path, "rb", buffering=0) as file:
            file.seek(int(self.table.offset[chunk]))
            for number, values in enumerate(views):
                head = _read_exactly(
                    file, bytearray((gap if number else 0) + TAR_BLOCK + NPY_HEADER)
                )
                body = _read_exactly(file, values.data.cast("B"))
                if with_crc:
                    crc = zlib.crc32(body, zlib.crc32(head, crc))
                prefixes.append(bytes(head[-TAR_BLOCK - NPY_HEADER :]))
            rest = bytearray(self._end(chunk) - file.tell())
            tail = bytes(_read_exactly(file, rest))
        return prefixes, tail[gap:], zlib.crc32(tail, crc)

    def _end(self, chunk: int) -> int:
        following = chunk + 1
        number = int(self.table.shard[chunk])
        if following < len(self.table) and int(self.table.shard[following]) == number:
            return int(self.table.offset[following])
        return self._manifest.shards[number].bytes - 2 * TAR_BLOCK


def _read_exactly(file: io.RawIOBase, target: Buffer) -> Buffer:
    view, done = memoryview(target), 0
    while done < len(view):
        count = file.readinto(view[done:])
        if not count:
            raise DamagedChunkError("the file ends inside it")
        done += count
    return target
