"""pyramid-v1: a fixed feature space of images, computed from constants, with nothing to download.

An image is resized to 64 x 64 and described by 248 numbers in three parts:

    layout       96   8 x 8 means of lightness, 4 x 4 means of two opponent colours
    orientation 128   Gabor energies, 2 scales x 4 orientations, averaged on a 4 x 4 grid
    residual     24   absolute residual of a 3 x 3 blur: lightness on a 4 x 4 grid, colours on 2 x 2

Energies and residuals enter as log(1 + energy / floor). Each part is multiplied by a constant, so
that on photographs the three have about the same variance. Distances in this space are not FID and
not comparable with it; detail finer than 64 x 64 does not enter.

Any change of a number here is another feature space and needs another name.
"""

from __future__ import annotations

import hashlib
import json
import math
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from latentddm.evaluation.features import resize_pixels

WORKING_SIZE = 64
ORIENTATIONS = 4
KERNEL_SIZE = 7
WAVELENGTH = 4.0
ENVELOPE = 1.6
ENERGY_FLOOR = 0.02
LIGHTNESS_WEIGHT = 3.0
COLOUR_WEIGHT = 10.0
ORIENTATION_WEIGHT = 2.0
RESIDUAL_WEIGHT = 5.0
OPPONENT = ((0.299, 0.587, 0.114), (0.5, -0.5, 0.0), (0.25, 0.25, -0.5))
"""Rows: lightness, red minus green, yellow minus blue; columns: RGB in [0, 1]."""
BINOMIAL = (0.25, 0.5, 0.25)
_SHARED = (WORKING_SIZE, ORIENTATIONS, KERNEL_SIZE, WAVELENGTH, ENVELOPE, ENERGY_FLOOR, OPPONENT)
MAPS_CONSTANTS = (*_SHARED, BINOMIAL)
CONSTANTS = (
    *_SHARED,
    *(LIGHTNESS_WEIGHT, COLOUR_WEIGHT, ORIENTATION_WEIGHT, RESIDUAL_WEIGHT, BINOMIAL),
)
CHUNK = 50


def hash_of_constants(*constants: object) -> str:
    """sha256 of everything that a computed feature space consists of."""
    return "sha256:" + hashlib.sha256(json.dumps(constants).encode()).hexdigest()


class PyramidMaps:
    """The maps that pyramid-v1 and pyramid-v2 describe, of one chunk of pictures."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._filters = _gabor_filters().to(device)
        self._blur = _outer(torch.tensor(BINOMIAL))[None, None].to(device)
        self._opponent = torch.tensor(OPPONENT, device=device)

    def channels(self, pixels: Tensor) -> Tensor:
        """Lightness and opponent colours, uint8 [N, S, S, 3], S >= 32 -> [N, 3, 64, 64]."""
        colours = resize_pixels(pixels.to(self._opponent.device), WORKING_SIZE, "bilinear") / 255
        return torch.einsum("kc,nchw->nkhw", self._opponent, colours)

    def blurred(self, channels: Tensor) -> Tensor:
        """The binomial blur of 3 x 3."""
        count = channels.shape[1]
        padded = F.pad(channels, (1, 1, 1, 1), mode="reflect")
        return F.conv2d(padded, self._blur.expand(count, 1, 3, 3), groups=count)

    def energies(self, lightness: Tensor) -> Tensor:
        """Modulus of the two phases of each filter, [N, 1, h, w] -> [N, orientations, h, w]."""
        edge = KERNEL_SIZE // 2
        phases = F.conv2d(F.pad(lightness, (edge,) * 4, mode="reflect"), self._filters)
        even, odd = phases.chunk(2, dim=1)
        return (even.square() + odd.square()).sqrt()


class PyramidFeatures(ABC):
    """A feature space of the maps, a pure function of the pixels."""

    name: ClassVar[str]
    dimension: ClassVar[int]
    hash: ClassVar[str]
    resize = f"bilinear with antialiasing to {WORKING_SIZE} px"

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._maps = PyramidMaps(device)

    @torch.inference_mode()
    def __call__(self, pixels: Tensor) -> Tensor:
        """pixels: uint8 [N, S, S, 3], S >= 32 -> float32 [N, dimension] on the CPU."""
        # Small chunks fit the processor's cache: twice as fast as one large batch.
        return torch.cat([self._features(chunk) for chunk in pixels.split(CHUNK)])

    @abstractmethod
    def _features(self, pixels: Tensor) -> Tensor:
        """The features of one chunk."""


class PyramidExtractor(PyramidFeatures):
    """The feature space pyramid-v1 (see the module)."""

    name = "pyramid-v1"
    dimension = 248
    hash = hash_of_constants(name, *CONSTANTS)

    def _features(self, pixels: Tensor) -> Tensor:
        maps = self._maps
        channels = maps.channels(pixels)
        blurred = maps.blurred(channels)
        lightness, residual = channels[:, :1], (channels - blurred).abs()
        coarse = maps.energies(F.avg_pool2d(blurred[:, :1], 2))
        parts = [
            LIGHTNESS_WEIGHT * cells(lightness, 8),
            COLOUR_WEIGHT * cells(channels[:, 1:], 4),
            ORIENTATION_WEIGHT * compressed(cells(maps.energies(lightness), 4)),
            ORIENTATION_WEIGHT * compressed(cells(coarse, 4)),
            RESIDUAL_WEIGHT * compressed(cells(residual[:, :1], 4)),
            RESIDUAL_WEIGHT * compressed(cells(residual[:, 1:], 2)),
        ]
        return torch.cat(parts, dim=1).cpu()


def _gabor_filters() -> Tensor:
    """Even, then odd Gabor filters, [2 x orientations, 1, 7, 7]: zero mean, unit absolute sum."""
    axis = torch.arange(KERNEL_SIZE, dtype=torch.float64) - KERNEL_SIZE // 2
    down, right = torch.meshgrid(axis, axis, indexing="ij")
    envelope = torch.exp(-(down**2 + right**2) / (2 * ENVELOPE**2))
    even, odd = [], []
    for index in range(ORIENTATIONS):
        angle = math.pi * index / ORIENTATIONS
        phase = 2 * math.pi / WAVELENGTH * (right * math.cos(angle) + down * math.sin(angle))
        wave = phase.cos()
        # Uniform light must have no energy.
        even.append(envelope * (wave - (envelope * wave).sum() / envelope.sum()))
        odd.append(envelope * phase.sin())
    filters = torch.stack(even + odd)
    filters /= filters.abs().sum((1, 2), keepdim=True)
    return filters[:, None].float()


def _outer(row: Tensor) -> Tensor:
    return row[:, None] * row[None, :]


def cells(maps: Tensor, grid: int) -> Tensor:
    """Means over the cells of a grid, [N, C, h, w] -> [N, C x grid x grid]."""
    return F.avg_pool2d(maps, maps.shape[-1] // grid).flatten(1)


def compressed(energy: Tensor) -> Tensor:
    """log(1 + energy / floor): ratios for strong energies, differences for weak ones."""
    return torch.log1p(energy / ENERGY_FLOOR)
