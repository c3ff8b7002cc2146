"""pyramid-v2: pyramid-v1 with relations between the parts of a picture, and less of its detail.

A picture of two halves that do not belong together has in each half the statistics of a real one;
what is wrong is a relation. The 344 numbers of an image, at 64 x 64:

    layout       96   8 x 8 means of lightness, 4 x 4 means of two opponent colours
    orientation 128   Gabor energies, 2 scales x 4 orientations, averaged on a 4 x 4 grid
    residual     24   absolute residual of a 3 x 3 blur: lightness on a 4 x 4 grid, colours on 2 x 2
    relations    96   distances between the orientation energies of two cells of the 4 x 4 grid, for
                      the 48 pairs in one row or one column, at the two coarser of 3 scales

A relation is a nonlinear function of two places (self-similarity: Walk et al. 2010 for colours), so
that a wrong one shifts a mean and not only a covariance. Its energies e are those of the cells over
their mean in the picture, as log(0.3 + e): contrast does not enter. The weights were set so that on
aligned faces the Fréchet distance has FID's proportions of some faults: the right half of another
picture, a lower right quarter of another, a slight blur, incoherent and averaged draws
(tools/results/ruler). Distances are not FID; detail finer than 64 x 64 does not enter.

Any change of a number here is another feature space and needs another name.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from latentddm.evaluation.pyramid import (
    MAPS_CONSTANTS,
    ORIENTATIONS,
    PyramidFeatures,
    cells,
    compressed,
    hash_of_constants,
)

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
    *MAPS_CONSTANTS,
    *(GRID, LIGHTNESS_WEIGHT, COLOUR_WEIGHT, ORIENTATION_WEIGHT, RESIDUAL_WEIGHT, RELATION_WEIGHT),
    *(RELATIVE_FLOOR, LEAST_ENERGY),
)


class RelationalPyramidExtractor(PyramidFeatures):
    """The feature space pyramid-v2 (see the module)."""

    name = "pyramid-v2"
    dimension = 344
    hash = hash_of_constants(name, *CONSTANTS)

    def __init__(self, device: torch.device | str = "cpu") -> None:
        super().__init__(device)
        self._pairs = _pairs_in_line(GRID).to(device)

    def _features(self, pixels: Tensor) -> Tensor:
        maps = self._maps
        channels = maps.channels(pixels)
        blurred = maps.blurred(channels)
        lightness, residual = channels[:, :1], (channels - blurred).abs()
        half = F.avg_pool2d(blurred[:, :1], 2)
        quarter = F.avg_pool2d(maps.blurred(half), 2)
        fine, middle, coarse = (
            cells(maps.energies(scale), GRID) for scale in (lightness, half, quarter)
        )
        parts = [
            LIGHTNESS_WEIGHT * cells(lightness, 8),
            COLOUR_WEIGHT * cells(channels[:, 1:], GRID),
            ORIENTATION_WEIGHT * compressed(fine),
            ORIENTATION_WEIGHT * compressed(middle),
            RESIDUAL_WEIGHT * compressed(cells(residual[:, :1], GRID)),
            RESIDUAL_WEIGHT * compressed(cells(residual[:, 1:], 2)),
            RELATION_WEIGHT * self._relations(middle),
            RELATION_WEIGHT * self._relations(coarse),
        ]
        return torch.cat(parts, dim=1).cpu()

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
