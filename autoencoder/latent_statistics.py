"""Moments and correlations of latents: the difficulty of the distribution for a generator."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class LatentSummary:
    """Statistics of raw latents [N,C,h,w] per channel, over all images and positions.

    positions: N * h * w. kurtosis: excess, 0 for a normal distribution. channels: correlations
    between the channels at one position, [C,C]. right, below: correlation of each channel with
    itself one position to the right and below.
    """

    positions: int
    mean: list[float]
    std: list[float]
    kurtosis: list[float]
    channels: list[list[float]]
    right: list[float]
    below: list[float]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class LatentStatistics:
    """Power sums over batches, in float64 about the mean of the first batch."""

    def __init__(self) -> None:
        self._centre: Tensor | None = None
        self._positions = 0
        self._powers: Tensor = torch.zeros(())  # sums of z, z^2, z^3, z^4: [4,C]
        self._products: Tensor = torch.zeros(())  # sums of z z^T: [C,C]
        self._right, self._below = _PairSums(), _PairSums()

    def add(self, latents: Tensor) -> None:
        """Add a batch of raw latents [B,C,h,w]."""
        values = latents.double().cpu()
        if self._centre is None:
            self._centre = values.mean((0, 2, 3))
        values = values - self._centre[:, None, None]
        self._positions += values.shape[0] * values.shape[2] * values.shape[3]
        powers = torch.stack([(values**power).sum((0, 2, 3)) for power in (1, 2, 3, 4)])
        self._powers = self._powers + powers
        self._products = self._products + torch.einsum("bchw,bdhw->cd", values, values)
        self._right.add(values[..., :-1], values[..., 1:])
        self._below.add(values[..., :-1, :], values[..., 1:, :])

    def summary(self) -> LatentSummary:
        """Statistics of all batches; at least one must have been added."""
        assert self._centre is not None
        first, second, third, fourth = self._powers / self._positions  # raw moments, [C] each
        variance = second - first**2
        about_mean = fourth - 4 * first * third + 6 * first**2 * second - 3 * first**4
        covariance = self._products / self._positions - torch.outer(first, first)
        std = variance.clamp_min(0).sqrt()
        return LatentSummary(
            positions=self._positions,
            mean=(self._centre + first).tolist(),
            std=std.tolist(),
            kurtosis=_ratio(about_mean, variance**2, otherwise=3.0).sub(3).tolist(),
            channels=_ratio(covariance, torch.outer(std, std)).tolist(),
            right=self._right.correlation().tolist(),
            below=self._below.correlation().tolist(),
        )


class _PairSums:
    """Sums per channel for the correlation of two values: count, a, b, a^2, b^2, ab."""

    def __init__(self) -> None:
        self._sums: Tensor = torch.zeros(())

    def add(self, first: Tensor, second: Tensor) -> None:
        terms = (torch.ones_like(first), first, second, first**2, second**2, first * second)
        self._sums = self._sums + torch.stack([term.sum((0, 2, 3)) for term in terms])

    def correlation(self) -> Tensor:
        """Pearson's correlation, [C]; 0 without pairs or without variance."""
        count, a, b, aa, bb, ab = self._sums
        covariance = count * ab - a * b
        spread = ((count * aa - a**2) * (count * bb - b**2)).clamp_min(0).sqrt()
        return _ratio(covariance, spread)


def _ratio(numerator: Tensor, denominator: Tensor, otherwise: float = 0.0) -> Tensor:
    """numerator / denominator; `otherwise` where the denominator is 0."""
    safe = torch.where(denominator > 0, denominator, 1.0)
    return torch.where(denominator > 0, numerator / safe, otherwise)
