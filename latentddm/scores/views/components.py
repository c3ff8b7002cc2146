"""Orthonormal components of samples: two-dimensional cosines, and principal axes."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor


@lru_cache
def cosine_matrix(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The orthonormal DCT-II, [size, size]; row k is the cosine of k half periods.

    sqrt(2 / N) cos(pi (2 i + 1) k / (2 N)), and sqrt(1 / N) for k = 0.
    """
    k, i = torch.arange(size)[:, None].double(), torch.arange(size)[None].double()
    matrix = math.sqrt(2 / size) * torch.cos(math.pi * (2 * i + 1) * k / (2 * size))
    matrix[0] /= math.sqrt(2)
    return matrix.to(device, dtype)


def cosine_components(x: Tensor) -> Tensor:
    """The orthonormal two-dimensional DCT-II over the last two axes, [..., H, W]."""
    rows, columns = (cosine_matrix(size, x.dtype, x.device) for size in x.shape[-2:])
    # Products with the last axis alone: batches of small matrices are slow.
    by_columns = (x @ columns.T).transpose(-1, -2)
    return (by_columns @ rows.T).transpose(-1, -2)


def cosine_octaves(height: int, width: int) -> Tensor:
    """The octave of each cosine, [H, W]: 0 for the mean, then 1, 2-3, 4-7, ... half periods.

    Of the longer edge, by the higher one of the two frequencies in cycles for each position.
    """
    longer = max(height, width)
    by_row = torch.arange(height)[:, None].double() * (longer / height)
    by_column = torch.arange(width)[None].double() * (longer / width)
    frequency = torch.maximum(by_row, by_column)
    return (frequency.clamp_min(0.5).log2().floor() + 1).long()


def averaging(bands: Tensor) -> Tensor:
    """A matrix [K, V] of means over the components of each of V bands; bands: [K], 0 to V - 1."""
    belongs = torch.nn.functional.one_hot(bands).double()
    return belongs / belongs.sum(0)


def principal_axes(latents: Tensor) -> tuple[Tensor, Tensor]:
    """Axes [D, K], orthonormal, and their variances [K], the largest first; float64, on the CPU.

    latents: [N, ...] of D numbers each. K is D, or N - 1 where that is fewer: then the axes of no
    variance in the sample are left out.
    """
    x = latents.flatten(1).double().cpu()
    x = x - x.mean(0)
    count, dimension = x.shape
    if count > dimension:
        variances, axes = torch.linalg.eigh(x.T @ x / (count - 1))
        return axes.flip(1), variances.flip(0).clamp_min(0)
    variances, weights = torch.linalg.eigh(x @ x.T / (count - 1))
    # The least one is zero, of the mean that was taken out.
    variances, weights = variances.flip(0)[:-1].clamp_min(0), weights.flip(1)[:, :-1]
    axes = x.T @ weights
    return axes / axes.norm(dim=0).clamp_min(torch.finfo(axes.dtype).tiny), variances
