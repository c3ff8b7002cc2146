"""pyramid-v2: a fixed feature space of images, computed from constants, with nothing to download.

A picture of two halves that do not belong together has in each half the statistics of a real one;
what is wrong is a relation. So relations between the parts of a picture are features of their own,
and count for more than detail. An image is resized to 64 x 64 and described by 344 numbers:

    layout       96   8 x 8 means of lightness, 4 x 4 means of two opponent colours
    orientation 128   Gabor energies, 2 scales x 4 orientations, averaged on a 4 x 4 grid
    residual     24   absolute residual of a 3 x 3 blur: lightness on a 4 x 4 grid, colours on 2 x 2
    relations    96   distances between the orientation energies of two cells of the 4 x 4 grid, for
                      the 48 pairs in one row or one column, at the two coarser of 3 scales

Energies and residuals enter as log(1 + energy / floor). A relation is a nonlinear function of two
places (self-similarity: Walk et al. 2010 for colours), so that a wrong one shifts a mean and not
only a covariance. Its energies e are those of the cells over their mean in the picture, as
log(0.3 + e): contrast does not enter. The weights were set so that on aligned faces the Fréchet
distance has FID's proportions of some faults: the right half of another picture, a lower right
quarter of another, a slight blur, incoherent and averaged draws (tools/results/ruler). Distances
are not FID and not comparable with it; detail finer than 64 x 64 does not enter.

Any change of a number here is another feature space and needs another name.
"""

from __future__ import annotations

import hashlib
import json
import math

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
OPPONENT = ((0.299, 0.587, 0.114), (0.5, -0.5, 0.0), (0.25, 0.25, -0.5))
"""Rows: lightness, red minus green, yellow minus blue; columns: RGB in [0, 1]."""
BINOMIAL = (0.25, 0.5, 0.25)
GRID = 4
LIGHTNESS_WEIGHT = 2.0
COLOUR_WEIGHT = 6.0
ORIENTATION_WEIGHT = 1.0
RESIDUAL_WEIGHT = 2.0
RELATION_WEIGHT = 2.0
RELATIVE_FLOOR = 0.3
LEAST_ENERGY = 0.002
"""Added to the mean energy of a picture: a uniform one has no relations."""
CONSTANTS = (
    *(WORKING_SIZE, ORIENTATIONS, KERNEL_SIZE, WAVELENGTH, ENVELOPE, ENERGY_FLOOR, OPPONENT),
    *(BINOMIAL, GRID, LIGHTNESS_WEIGHT, COLOUR_WEIGHT, ORIENTATION_WEIGHT, RESIDUAL_WEIGHT),
    *(RELATION_WEIGHT, RELATIVE_FLOOR, LEAST_ENERGY),
)
CHUNK = 50


def _hash_of(*constants: object) -> str:
    """sha256 of everything that a computed feature space consists of."""
    return "sha256:" + hashlib.sha256(json.dumps(constants).encode()).hexdigest()


class PyramidExtractor:
    """The feature space pyramid-v2 (see the module), a pure function of the pixels."""

    name = "pyramid-v2"
    dimension = 344
    hash = _hash_of(name, *CONSTANTS)
    resize = f"bilinear with antialiasing to {WORKING_SIZE} px"

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._filters = _gabor_filters().to(device)
        self._blur = _outer(torch.tensor(BINOMIAL))[None, None].to(device)
        self._opponent = torch.tensor(OPPONENT, device=device)
        self._pairs = _pairs_in_line(GRID).to(device)

    @torch.inference_mode()
    def __call__(self, pixels: Tensor) -> Tensor:
        """pixels: uint8 [N, S, S, 3], S >= 32 -> float32 [N, dimension] on the CPU."""
        # Small chunks fit the processor's cache: twice as fast as one large batch.
        return torch.cat([self._features(chunk) for chunk in pixels.split(CHUNK)])

    def _features(self, pixels: Tensor) -> Tensor:
        colours = resize_pixels(pixels.to(self._opponent.device), WORKING_SIZE, "bilinear") / 255
        channels = torch.einsum("kc,nchw->nkhw", self._opponent, colours)
        blurred = self._blurred(channels)
        lightness, residual = channels[:, :1], (channels - blurred).abs()
        half = F.avg_pool2d(blurred[:, :1], 2)
        quarter = F.avg_pool2d(self._blurred(half), 2)
        fine, middle, coarse = (
            _cells(self._energies(scale), GRID) for scale in (lightness, half, quarter)
        )
        parts = [
            LIGHTNESS_WEIGHT * _cells(lightness, 8),
            COLOUR_WEIGHT * _cells(channels[:, 1:], GRID),
            ORIENTATION_WEIGHT * _compressed(fine),
            ORIENTATION_WEIGHT * _compressed(middle),
            RESIDUAL_WEIGHT * _compressed(_cells(residual[:, :1], GRID)),
            RESIDUAL_WEIGHT * _compressed(_cells(residual[:, 1:], 2)),
            RELATION_WEIGHT * self._relations(middle),
            RELATION_WEIGHT * self._relations(coarse),
        ]
        return torch.cat(parts, dim=1).cpu()

    def _blurred(self, channels: Tensor) -> Tensor:
        """The binomial blur of 3 x 3."""
        count = channels.shape[1]
        padded = F.pad(channels, (1, 1, 1, 1), mode="reflect")
        return F.conv2d(padded, self._blur.expand(count, 1, 3, 3), groups=count)

    def _energies(self, lightness: Tensor) -> Tensor:
        """Modulus of the two phases of each filter, [N, 1, h, w] -> [N, orientations, h, w]."""
        edge = KERNEL_SIZE // 2
        phases = F.conv2d(F.pad(lightness, (edge,) * 4, mode="reflect"), self._filters)
        even, odd = phases.chunk(2, dim=1)
        return (even.square() + odd.square()).sqrt()

    def _relations(self, energies: Tensor) -> Tensor:
        """[N, orientations x cells] -> the Euclidean distances of the pairs of cells, [N, 48]."""
        relative = energies / (energies.mean(1, keepdim=True) + LEAST_ENERGY)
        profiles = (RELATIVE_FLOOR + relative).log().unflatten(1, (ORIENTATIONS, GRID * GRID))
        first, second = self._pairs
        return (profiles[:, :, first] - profiles[:, :, second]).norm(dim=1)


def _pairs_in_line(grid: int) -> Tensor:
    """The pairs of cells of one row or one column, as indices [2, pairs]."""
    first, second = torch.triu_indices(grid**2, grid**2, 1)
    in_line = (first // grid == second // grid) | (first % grid == second % grid)
    return torch.stack([first[in_line], second[in_line]])


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


def _cells(maps: Tensor, grid: int) -> Tensor:
    """Means over the cells of a grid, [N, C, h, w] -> [N, C x grid x grid]."""
    return F.avg_pool2d(maps, maps.shape[-1] // grid).flatten(1)


def _compressed(energy: Tensor) -> Tensor:
    """log(1 + energy / floor): ratios for strong energies, differences for weak ones."""
    return torch.log1p(energy / ENERGY_FLOOR)
