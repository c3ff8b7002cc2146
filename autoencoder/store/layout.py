"""The bytes of a shard: plain tar members, the same bytes for the same samples.

A chunk is a run of k samples: one npy member per view, then one json member with keys, labels and
source indices. When a chunk is read, its headers are rebuilt and compared, never interpreted; the
only decoder is that of json.
"""

from __future__ import annotations

import json
import math
import tarfile
from dataclasses import dataclass
from typing import Any

import numpy as np

TAR_BLOCK = 512
NPY_HEADER = 128
END_OF_ARCHIVE = bytes(2 * TAR_BLOCK)
DTYPES = {"float16": "<f2", "float32": "<f4"}
CONTENTS = {"samples": "latents.npy", "moments": "moments.npy"}
VIEWS = ("plain", "flipped")


class DamagedChunkError(Exception):
    """A difference between the bytes of a chunk and the manifest; the message is the reason."""


@dataclass(frozen=True, kw_only=True)
class ChunkFormat:
    """Layout of the latents in every chunk of a store.

    shape: one latent, (channels, height, width), without the doubling of moments.
    contents: "samples", or "moments" (mean and log variance stacked on the channel axis).
    views: ("plain",) or ("plain", "flipped").
    """

    shape: tuple[int, int, int]
    dtype: str
    contents: str
    views: tuple[str, ...]
    chunk_samples: int

    @property
    def row_shape(self) -> tuple[int, int, int]:
        """The stored shape per sample and view: `shape`, with 2C channels for moments."""
        channels, height, width = self.shape
        return (2 * channels if self.contents == "moments" else channels, height, width)

    @property
    def row_bytes(self) -> int:
        return math.prod(self.row_shape) * np.dtype(self.dtype).itemsize

    def member_names(self, first: int) -> list[str]:
        """The names of the npy members, one per view, of the chunk with first position `first`."""
        end = CONTENTS[self.contents]
        return [f"{first:09d}.{'' if view == 'plain' else view + '.'}{end}" for view in self.views]

    def array_shape(self, samples: int) -> tuple[int, ...]:
        """The npy shape of a chunk; for k = 1 the usual layout of one sample per member."""
        return self.row_shape if self.chunk_samples == 1 else (samples, *self.row_shape)

    def array_prefix(self, name: str, samples: int) -> bytes:
        """The tar header and the npy header in front of an array's values."""
        size = NPY_HEADER + samples * self.row_bytes
        return tar_header(name, size) + npy_header(self.array_shape(samples), self.dtype)


@dataclass(frozen=True)
class SampleInfo:
    """Information about one stored sample: its key, label and index in the source."""

    key: str
    label: int | None
    source_index: int


def tar_header(name: str, size: int) -> bytes:
    """The 512-byte USTAR header of a regular file without owner and time."""
    member = tarfile.TarInfo(name)
    member.size = size
    member.mode = 0o644
    return member.tobuf(tarfile.USTAR_FORMAT)


def npy_header(shape: tuple[int, ...], dtype: str) -> bytes:
    """The 128-byte header of a version 1.0 npy file in C order."""
    text = f"{{'descr': '{DTYPES[dtype]}', 'fortran_order': False, 'shape': {shape!r}, }}"
    return b"\x93NUMPY\x01\x00\x76\x00" + text.ljust(NPY_HEADER - 11).encode() + b"\n"


def padding(size: int) -> int:
    """The number of zero bytes behind a tar member of `size` bytes."""
    return -size % TAR_BLOCK


def pack_chunk(
    first: int, views: list[np.ndarray], infos: list[SampleInfo], layout: ChunkFormat
) -> bytes:
    """The tar members of one chunk; `views` holds one [k, *row_shape] array per view."""
    pieces: list[bytes] = []
    for name, values in zip(layout.member_names(first), views, strict=True):
        payload = np.ascontiguousarray(values, dtype=DTYPES[layout.dtype]).tobytes()
        pieces += [layout.array_prefix(name, len(values)), payload]
        pieces.append(bytes(padding(NPY_HEADER + len(payload))))
    payload = json.dumps(_describe(infos, layout), ensure_ascii=False).encode()
    pieces += [tar_header(f"{first:09d}.json", len(payload)), payload, bytes(padding(len(payload)))]
    return b"".join(pieces)


def parse_infos(tail: bytes, first: int, samples: int, layout: ChunkFormat) -> list[SampleInfo]:
    """The content of the json member at the end of a chunk; DamagedChunkError if it is wrong."""
    try:
        size = int(tail[124:135], 8)
        value = json.loads(tail[TAR_BLOCK : TAR_BLOCK + size])
    except (ValueError, RecursionError) as error:
        raise DamagedChunkError(f"the json member cannot be read ({error})") from None
    if tail[:TAR_BLOCK] != tar_header(f"{first:09d}.json", size):
        raise DamagedChunkError("the header of the json member is wrong")
    try:
        rows = _columns(value, layout)
        infos = [SampleInfo(str(key), label, int(source)) for key, label, source in rows]
    except (KeyError, TypeError, ValueError):
        raise DamagedChunkError("the json member lacks keys, labels or sources") from None
    if len(infos) != samples:
        raise DamagedChunkError(f"the json member lists {len(infos)} samples, not {samples}")
    return infos


def _describe(infos: list[SampleInfo], layout: ChunkFormat) -> dict[str, Any]:
    if layout.chunk_samples == 1:
        (info,) = infos
        return {"key": info.key, "label": info.label, "source": info.source_index}
    return {
        "keys": [info.key for info in infos],
        "labels": [info.label for info in infos],
        "sources": [info.source_index for info in infos],
    }


def _columns(value: dict[str, Any], layout: ChunkFormat) -> list[tuple[Any, Any, Any]]:
    if layout.chunk_samples == 1:
        return [(value["key"], value["label"], value["source"])]
    return list(zip(value["keys"], value["labels"], value["sources"], strict=True))
