"""manifest.json: the contents of a store, shard by shard, with sizes, hashes and statistics."""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from autoencoder.store.layout import ChunkFormat
from autoencoder.store.plan import FORMAT, LARGEST_NUMBER, VERSION, EncodePlan
from latentddm.engine.errors import JobError, UserError

MANIFEST_NAME = "manifest.json"
SHARD_NAME = re.compile(r"latents-[0-9]{6,9}\.tar")


@dataclass(frozen=True)
class ChunkEntry:
    """A chunk of a shard: its number of samples, its first byte, the CRC-32 of all its bytes."""

    samples: int
    offset: int
    crc32: int


@dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """One tar file. batch_size: of the encoding, necessary for equal bytes in a repair."""

    name: str
    samples: int
    bytes: int
    sha256: str
    batch_size: int
    chunks: tuple[ChunkEntry, ...]

    def to_json(self) -> dict[str, Any]:
        chunks = [[chunk.samples, chunk.offset, chunk.crc32] for chunk in self.chunks]
        return {**vars(self), "chunks": chunks}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> ShardEntry:
        """The checked entry; ValueError, TypeError or KeyError for an invalid one."""
        entry = cls(
            name=str(value["name"]),
            samples=int(value["samples"]),
            bytes=int(value["bytes"]),
            sha256=str(value["sha256"]),
            batch_size=int(value["batch_size"]),
            chunks=tuple(ChunkEntry(*(int(part) for part in row)) for row in value["chunks"]),
        )
        # Names become paths, here and in the cache of remote stores, so only plain ones are valid.
        if not SHARD_NAME.fullmatch(entry.name):
            raise ValueError(f"{entry.name!r} is not the name of a shard")
        if not re.fullmatch(r"[0-9a-f]{64}", entry.sha256):
            raise ValueError(f"the sha256 of {entry.name} is malformed")
        if any(c.samples < 1 or not 0 <= c.crc32 < 1 << 32 for c in entry.chunks):
            raise ValueError(f"a chunk of {entry.name} has no samples or no CRC-32")
        if sum(chunk.samples for chunk in entry.chunks) != entry.samples:
            raise ValueError(f"the chunks of {entry.name} do not add up to its samples")
        edges = entry.edges
        if entry.chunks and (edges[0] or any(a >= b for a, b in pairwise(edges))):
            raise ValueError(f"the chunks of {entry.name} overlap")
        if entry.bytes >= LARGEST_NUMBER:
            raise ValueError(f"{entry.name} has {entry.bytes} bytes")
        return entry

    @property
    def edges(self) -> list[int]:
        """The first byte of each chunk, and the end of the last."""
        return [chunk.offset for chunk in self.chunks] + [self.bytes]

    def check_layout(self, layout: ChunkFormat) -> None:
        """ValueError for a chunk with fewer bytes than its samples: memory is taken for these."""
        for chunk, (start, end) in zip(self.chunks, pairwise(self.edges), strict=True):
            if chunk.samples * layout.row_bytes * len(layout.views) > end - start:
                raise ValueError(f"a chunk of {self.name} is too short for its samples")


@dataclass(frozen=True)
class Unreadable:
    """An unreadable image of the source, with the reason."""

    index: int
    key: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The manifest of a finished store. mean, std: of the raw latents per channel, float64."""

    plan: EncodePlan
    shards: tuple[ShardEntry, ...]
    mean: np.ndarray
    std: np.ndarray
    labelled: int
    unreadable: tuple[Unreadable, ...]
    software: dict[str, str]

    @property
    def samples(self) -> int:
        return sum(shard.samples for shard in self.shards)

    def to_bytes(self) -> bytes:
        """The bytes of the file, with a checksum of its contents and one line per shard."""
        content = self._content()
        lines = [f'  "checksum": "{_checksum(content)}"']
        for name, value in content.items():
            if name in ("shards", "unreadable"):
                rows = ",\n".join(f"    {_line(row)}" for row in value)
                lines.append(f'  "{name}": [\n{rows}\n  ]' if value else f'  "{name}": []')
            else:
                text = json.dumps(value, indent=2, ensure_ascii=False).replace("\n", "\n  ")
                lines.append(f'  "{name}": {text}')
        return ("{\n" + ",\n".join(lines) + "\n}\n").encode("utf-8", "backslashreplace")

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> Manifest:
        """The manifest in `data`; `where` names the file in messages.

        UserError for other files and newer versions, JobError for a damaged manifest.
        """
        try:
            content = json.loads(data)
            checksum = content.pop("checksum", None)
            name, version = content.pop("format", None), content.pop("version", None)
        except (ValueError, AttributeError, RecursionError) as error:
            raise _damaged(where, str(error)) from None
        if name != FORMAT:
            raise UserError(
                f"{where} is not the manifest of a latent store (format {name!r}); check the path."
            )
        if not isinstance(version, int) or version > VERSION:
            raise UserError(
                f"{where} has version {version!r}, above the supported {VERSION}; install a newer "
                "latentddm."
            )
        content = {"format": name, "version": version, **content}
        if checksum != _checksum(content):
            raise _damaged(where, "its checksum does not match its contents")
        try:
            return cls._from_content(content)
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
            raise _damaged(where, f"{type(error).__name__}: {error}") from None

    def _content(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "version": VERSION,
            "samples": self.samples,
            "labelled": self.labelled,
            "mean": self.mean.tolist(),
            "std": self.std.tolist(),
            "plan": self.plan.to_json(),
            "software": self.software,
            "unreadable": [vars(image) for image in self.unreadable],
            "shards": [shard.to_json() for shard in self.shards],
        }

    @classmethod
    def _from_content(cls, content: dict[str, Any]) -> Manifest:
        manifest = cls(
            plan=EncodePlan.from_json(content["plan"]),
            shards=tuple(ShardEntry.from_json(row) for row in content["shards"]),
            mean=np.array(content["mean"], dtype=np.float64),
            std=np.array(content["std"], dtype=np.float64),
            labelled=int(content["labelled"]),
            unreadable=tuple(Unreadable(**row) for row in content["unreadable"]),
            software={str(name): str(text) for name, text in content["software"].items()},
        )
        for shard in manifest.shards:
            shard.check_layout(manifest.plan.layout)
        channels = manifest.plan.layout.shape[0]
        if manifest.mean.shape != (channels,) or manifest.std.shape != (channels,):
            raise ValueError(f"mean and std must have {channels} values")
        if not all(map(math.isfinite, [*manifest.mean, *manifest.std])) or manifest.samples < 1:
            raise ValueError("there are no samples, or mean and std are not finite")
        return manifest


def _line(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False)


def _checksum(content: dict[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return f"sha256:{hashlib.sha256(canonical.encode()).hexdigest()}"


def _damaged(where: str, reason: str) -> JobError:
    return JobError(
        f"{where} is damaged ({reason}); restore it from a copy, or run the same encode again."
    )
