"""Features of images: the extractor protocol, sets of features, pixels at an extractor's input."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from latentddm.engine.errors import UserError

BATCH_SIZE = 64
SMALLEST_SIZE = 32


class FeatureExtractor(Protocol):
    """A map from images to vectors, each image by itself.

    name and hash: equal for equal features. resize: the preprocessing of pixels, in words.
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
        """Pixels uint8 [N, S, S, 3] (or latents [N, C, h, w]) -> float32 [N, D] on the CPU."""


@dataclass(frozen=True)
class FeatureSpace:
    """The identity of an extractor, as the protocol of a result states it."""

    name: str
    hash: str
    resize: str


@dataclass(frozen=True)
class FeatureSet:
    """Features of images of one source, in the order of their indices.

    values: float32 [N, D]. indices: positions of the images in the source. digests: sha256 of each
    image. size: edge in pixels, 0 for latents. name: the source's, for people.
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
        """sha256 over the images in order; independent of batches and processes."""
        return "sha256:" + hashlib.sha256(b"".join(self.digests)).hexdigest()


class FeatureCollector:
    """Accumulates the features of one source batch by batch."""

    def __init__(self, extractor: FeatureExtractor, name: str) -> None:
        self._extractor = extractor
        self._name = name
        self._values: list[Tensor] = []
        self._indices: list[int] = []
        self._digests: list[bytes] = []
        self._size = 0

    def add(self, indices: Sequence[int], images: Tensor) -> None:
        """Extract images uint8 [B, S, S, 3], or latents float [B, C, h, w], at these indices."""
        self._values.append(self._extractor(images).float().cpu())
        self._indices.extend(indices)
        arrays = np.ascontiguousarray(images.cpu().numpy())
        self._digests.extend(hashlib.sha256(image.tobytes()).digest() for image in arrays)
        self._size = 0 if images.is_floating_point() else images.shape[1]

    def features(self) -> FeatureSet:
        """The features of all added images."""
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
) -> FeatureSet:
    """Features of images uint8 [N, S, S, 3], or of latents [N, C, h, w] where the extractor takes
    latents. Keep the result to use a reference again. UserError for images of the wrong shape.
    """
    images = torch.as_tensor(images)
    collector = FeatureCollector(extractor, name)
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        collector.add(range(start, start + len(batch)), batch)
    return collector.features()


def merge_features(parts: Sequence[FeatureSet]) -> FeatureSet:
    """The parts extracted by several processes as one set, in the order of the indices."""
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


def check_pixels(pixels: Tensor) -> None:
    """UserError unless pixels are uint8 [N, S, S, 3] with S >= 32."""
    shape = list(pixels.shape)
    if pixels.dtype != torch.uint8 or len(shape) != 4 or shape[3] != 3 or shape[1] != shape[2]:
        raise UserError(
            f"Images for evaluation must be uint8 [N, S, S, 3], not {pixels.dtype} {shape}."
        )
    if shape[1] < SMALLEST_SIZE:
        raise UserError(
            f"Images for evaluation need {SMALLEST_SIZE} pixels a side; these have {shape[1]}."
        )


def resize_pixels(pixels: Tensor, size: int, filter_name: Literal["bilinear", "bicubic"]) -> Tensor:
    """uint8 [N, S, S, 3] -> float32 [N, 3, size, size] in 0 .. 255, antialiased, not rounded."""
    check_pixels(pixels)
    channels_first = pixels.permute(0, 3, 1, 2).float()
    if channels_first.shape[-1] == size:
        return channels_first
    resized = F.interpolate(
        channels_first, (size, size), mode=filter_name, align_corners=False, antialias=True
    )
    return resized.clamp_(0, 255)


def weights_hash(weights: Mapping[str, Tensor]) -> str:
    """Identity of a network: sha256 over names and float32 values in order, whatever file they
    came from; without the batch counters of normalisation layers.
    """
    digest = hashlib.sha256()
    for name, values in weights.items():
        if not name.endswith("num_batches_tracked"):
            digest.update(name.encode() + values.float().cpu().numpy().tobytes())
    return "sha256:" + digest.hexdigest()
