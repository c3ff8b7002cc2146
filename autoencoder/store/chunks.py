"""Reading of chunks from shards: checked bytes, directly into their destination."""

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
    """Access to the shards of a store. advice: the remedy for a damaged one."""

    advice: str

    def path(self, shard: int) -> Path:
        """The local file of a shard."""

    def prepare(self, shards: list[int]) -> None:
        """Fetch `shards` ahead of the calls of `path`."""


class ChunkTable:
    """All chunks of a store in store order, as columns.

    shard: its number. samples: their count. offset: the first byte. crc32: of all bytes. first: the
    planned position of the first sample. begin: the store index of the first sample.
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
        """The chunk of sample `index` of the store, and its row in the chunk."""
        chunk = int(np.searchsorted(self.begin, index, side="right")) - 1
        return chunk, index - int(self.begin[chunk])


class ChunkReader:
    """Reading of single chunks, without open files, hence safe after a fork."""

    def __init__(self, manifest: Manifest, files: ShardFiles) -> None:
        self.table = ChunkTable(manifest)
        self.layout: ChunkFormat = manifest.plan.layout
        self._manifest = manifest
        self._files = files
        self._checked = np.zeros(len(self.table), dtype=bool)

    def prepare(self, chunks: np.ndarray) -> None:
        """Fetch the missing shards of `chunks`."""
        self._files.prepare(np.unique(self.table.shard[chunks]).tolist())

    def read(self, chunk: int, views: list[np.ndarray], with_infos: bool) -> list[SampleInfo]:
        """As `read_checked`, with a JobError that names the shard and the chunk.

        The CRC is computed on the first read of a chunk by this process: it can dominate the cost,
        and files do not change between epochs.
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
            reason = error.strerror or error
            raise JobError(f"{path} cannot be read ({reason}); {self._files.advice}.") from None

    def read_checked(
        self,
        path: Path,
        chunk: int,
        views: list[np.ndarray],
        with_infos: bool,
        with_crc: bool = True,
    ) -> list[SampleInfo]:
        """Fill `views` (one contiguous [k, *row_shape] array per view) with the rows of `chunk`.

        Returns the information per sample, empty without `with_infos`. All bytes of the chunk,
        headers included, are checked against the CRC of the manifest, then the headers against
        shape, dtype and names. DamagedChunkError for any difference.
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
        """The headers before each view, the bytes behind the last view, and the CRC of all.

        The values are read into `views` directly, without a copy.
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
