"""Features of images: what an extractor is, and a set of features that knows where it came from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from latentddm.engine.errors import UserError

BATCH_SIZE = 64
Part = TypeVar("Part")


class FeatureExtractor(Protocol):
    """Turns images into vectors, each image by itself.

    name and hash: equal for equal features. resize: how pixels enter, in words.
    """

    @property
    def name(self) -> str: ...

    @property
    def dimension(self) -> int: ...

    @property
    def hash(self) -> str: ...

    @property
    def resize(self) -> str: ...

    def __call__(self, images: Tensor, /) -> Tensor:
        """Pixels uint8 [N, S, S, 3] (or what else the extractor takes) -> float32 [N, D], CPU."""


@dataclass(frozen=True)
class FeatureSpace:
    """What a protocol says about an extractor."""

    name: str
    hash: str
    resize: str


@dataclass(frozen=True)
class FeatureSet:
    """Features of some images of a source, in the order of their indices.

    values: float32 [N, D]. indices: where the images stand in the source. digests: sha256 of each
    image. size: pixels of an edge, 0 for latents. name: the source's, for people.
    """

    values: Tensor
    indices: tuple[int, ...]
    digests: tuple[bytes, ...]
    size: int
    name: str
    space: FeatureSpace

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def images_hash(self) -> str:
        """sha256 over the images in order, whatever the batches and the processes were."""
        return "sha256:" + hashlib.sha256(b"".join(self.digests)).hexdigest()


class FeatureCollector:
    """Gathers features batch by batch."""

    def __init__(self, extractor: FeatureExtractor, name: str) -> None:
        self._extractor = extractor
        self._name = name
        self._values: list[Tensor] = []
        self._indices: list[int] = []
        self._digests: list[bytes] = []
        self._size = 0

    def add(self, indices: Sequence[int], images: Tensor) -> None:
        """Take images uint8 [B, S, S, 3], or latents float [B, C, h, w], at these indices."""
        self._values.append(self._extractor(images).float().cpu())
        self._indices.extend(indices)
        self._digests.extend(hashlib.sha256(image.tobytes()).digest() for image in _arrays(images))
        self._size = 0 if images.is_floating_point() else images.shape[1]

    def features(self) -> FeatureSet:
        """All that was added."""
        extractor = self._extractor
        empty = torch.empty(0, extractor.dimension)
        return FeatureSet(
            values=torch.cat([empty, *self._values]),
            indices=tuple(self._indices),
            digests=tuple(self._digests),
            size=self._size,
            name=self._name,
            space=FeatureSpace(extractor.name, extractor.hash, extractor.resize),
        )


def extract_features(
    images: Tensor | np.ndarray,
    extractor: FeatureExtractor,
    *,
    name: str = "array",
    batch_size: int = BATCH_SIZE,
    rank: int = 0,
    world_size: int = 1,
) -> FeatureSet:
    """Features of an array of images; of every world_size-th from `rank` on if work is shared.

    images: uint8 [N, S, S, 3], or latents [N, C, h, w] for an extractor of latents. Keep the result
    to use a reference again. UserError if the images have the wrong shape.
    """
    images = torch.as_tensor(images)
    collector = FeatureCollector(extractor, name)
    mine = range(rank, len(images), world_size)
    for start in range(0, len(mine), batch_size):
        indices = mine[start : start + batch_size]
        collector.add(indices, images[list(indices)])
    return collector.features()


def merge_features(parts: Sequence[FeatureSet]) -> FeatureSet:
    """The parts that several processes extracted as one set, in the order of the indices."""
    filled = [part for part in parts if len(part)]
    if not filled:
        return parts[0]
    if len({(part.space, part.size, part.name) for part in filled}) > 1:
        raise UserError("Features of different images or extractors cannot be merged.")
    indices = [index for part in filled for index in part.indices]
    digests = [digest for part in filled for digest in part.digests]
    order = sorted(range(len(indices)), key=indices.__getitem__)
    return FeatureSet(
        values=torch.cat([part.values for part in filled])[order],
        indices=tuple(indices[place] for place in order),
        digests=tuple(digests[place] for place in order),
        size=filled[0].size,
        name=filled[0].name,
        space=filled[0].space,
    )


def process_share() -> tuple[int, int]:
    """(rank, world size) of this process in its torch.distributed group; (0, 1) alone."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def gather(part: Part) -> list[Part]:
    """What every process has, in the order of ranks, on all of them."""
    _, world_size = process_share()
    if world_size == 1:
        return [part]
    parts: list[Part] = [part] * world_size
    torch.distributed.all_gather_object(parts, part)
    return parts


def _arrays(images: Tensor) -> np.ndarray:
    return np.ascontiguousarray(images.cpu().numpy())
