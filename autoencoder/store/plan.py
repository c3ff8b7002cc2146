"""The plan of a store: all that determines its bytes, fixed before the first image is read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from autoencoder.store.layout import CONTENTS, DTYPES, VIEWS, ChunkFormat
from latentddm.engine.errors import UserError
from latentddm.engine.seeding import numpy_generator

FORMAT = "latentddm.latent-store"
VERSION = 1
LARGEST_NUMBER = 1 << 40  # of samples and bytes: a sum of products of two fits 64 bits

# The location of a source or a model may differ between two runs; its contents may not.
_DESCRIPTIVE = {"source.name", "source.left_out", "autoencoder.reference"}


@dataclass(frozen=True, kw_only=True)
class EncodePlan:
    """Inputs and settings of a store.

    autoencoder: {"reference", "fingerprint", "precision"}. preprocessing: its own description.
    source: {"name", "count", "keys"}, with a hash of all keys in order, and "left_out": the files
    that look like pictures and are not read, by suffix, if there are any. seed: of the
    global shuffle at encoding time; None: the order of the source.
    """

    autoencoder: dict[str, Any]
    preprocessing: dict[str, Any]
    source: dict[str, Any]
    layout: ChunkFormat
    shard_samples: int
    seed: int | None

    @property
    def shards(self) -> int:
        return -(-int(self.source["count"]) // self.shard_samples)

    def source_order(self) -> np.ndarray:
        """Source indices in the order of the store."""
        count = int(self.source["count"])
        if self.seed is None:
            return np.arange(count)
        return numpy_generator(self.seed, "encoding order").permutation(count)

    def to_json(self) -> dict[str, Any]:
        layout = self.layout
        return {
            "autoencoder": self.autoencoder,
            "preprocessing": self.preprocessing,
            "source": self.source,
            "latents": {
                "shape": list(layout.shape),
                "dtype": layout.dtype,
                "contents": layout.contents,
                "views": list(layout.views),
            },
            "chunk_samples": layout.chunk_samples,
            "shard_samples": self.shard_samples,
            "seed": self.seed,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> EncodePlan:
        """The plan of a manifest; ValueError, TypeError or KeyError for an invalid one."""
        latents = value["latents"]
        channels, height, width = (int(size) for size in latents["shape"])
        layout = ChunkFormat(
            shape=(channels, height, width),
            dtype=latents["dtype"],
            contents=latents["contents"],
            views=tuple(latents["views"]),
            chunk_samples=int(value["chunk_samples"]),
        )
        plan = cls(
            autoencoder={
                name: str(value["autoencoder"][name])
                for name in ("reference", "fingerprint", "precision")
            },
            preprocessing=dict(value["preprocessing"]),
            source={**value["source"], "count": int(value["source"]["count"])},
            layout=layout,
            shard_samples=int(value["shard_samples"]),
            seed=value["seed"],
        )
        plan.validate()
        return plan

    def validate(self) -> None:
        """ValueError for a value outside of the format."""
        layout = self.layout
        sizes = (*layout.shape, layout.chunk_samples, self.shard_samples)
        if min(sizes) < 1 or max(sizes) >= LARGEST_NUMBER:
            raise ValueError("shapes and sizes must be positive, and below 2^40")
        if layout.dtype not in DTYPES or layout.contents not in CONTENTS:
            raise ValueError(f"unknown dtype {layout.dtype!r} or contents {layout.contents!r}")
        if layout.views not in (VIEWS[:1], VIEWS):
            raise ValueError(f"unknown views {layout.views}")


def hash_keys(keys: Iterator[str]) -> str:
    """The SHA-256 of all keys of a source, in order."""
    digest = hashlib.sha256()
    for key in keys:
        digest.update(key.encode() + b"\n")
    return f"sha256:{digest.hexdigest()}"


def check_same_plan(found: dict[str, Any], wanted: dict[str, Any], where: str) -> None:
    """UserError with every difference between the plan of a store and a new one."""
    before, now = _flatten(found), _flatten(wanted)
    differences = [
        f"{name} is {before.get(name)!r} there and now {now.get(name)!r}"
        for name in sorted({*before, *now} - _DESCRIPTIVE)
        if before.get(name) != now.get(name)
    ]
    if differences:
        raise UserError(
            f"{where} has another plan ({', '.join(differences)}); repeat the first command, or "
            "give another output folder."
        )


def _flatten(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, part in value.items():
        if isinstance(part, dict):
            flat.update(_flatten(part, f"{prefix}{name}."))
        else:
            flat[prefix + name] = part
    return flat
