"""Mean and deviation per channel, and the conversion between raw latents and model space."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class ChannelStatistics:
    """Count, mean and sum of squared deviations per channel, in float64.

    Parts are merged by the pairwise update of Chan, Golub and LeVeque; in the order of the shards,
    the result is equal to the bit for any division of the work.
    """

    count: int
    mean: np.ndarray
    squares: np.ndarray

    @classmethod
    def empty(cls, channels: int) -> ChannelStatistics:
        return cls(0, np.zeros(channels), np.zeros(channels))

    @classmethod
    def of_chunk(cls, rows: np.ndarray, contents: str) -> ChannelStatistics:
        """Statistics of stored rows [k, C or 2C, h, w].

        For moments, those of draws from the posteriors: the variance of the means plus the mean of
        the variances.
        """
        values = rows.astype(np.float64)
        noise = np.zeros(1)
        if contents == "moments":
            values, log_variance = np.split(values, 2, axis=1)
            noise = np.exp(log_variance).sum(axis=(0, 2, 3))
        mean = values.mean(axis=(0, 2, 3))
        squares = np.square(values - mean[:, None, None]).sum(axis=(0, 2, 3)) + noise
        return cls(values.size // values.shape[1], mean, squares)

    @classmethod
    def merged(cls, parts: Iterable[ChannelStatistics], channels: int) -> ChannelStatistics:
        """The statistics of all parts, merged in the given order."""
        total = cls.empty(channels)
        for part in parts:
            total = total.merge(part)
        return total

    def merge(self, other: ChannelStatistics) -> ChannelStatistics:
        if other.count == 0:
            return self
        count = self.count + other.count
        difference = other.mean - self.mean
        mean = self.mean + difference * (other.count / count)
        between = np.square(difference) * (self.count / count * other.count)
        return ChannelStatistics(count, mean, self.squares + other.squares + between)

    @property
    def std(self) -> np.ndarray:
        """The population standard deviation per channel."""
        return np.sqrt(self.squares / max(self.count, 1))

    def to_json(self) -> dict[str, Any]:
        return {
            "count": self.count,
            "mean": self.mean.tolist(),
            "squares": self.squares.tolist(),
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> ChannelStatistics:
        mean, squares = (np.array(value[name], dtype=np.float64) for name in ("mean", "squares"))
        return cls(int(value["count"]), mean, squares)


class Standardisation:
    """Raw latents <-> model space: (raw - mean) / std per channel, in float32.

    A constant channel (std 0) is only centred.
    """

    def __init__(self, mean: Iterable[float], std: Iterable[float]) -> None:
        self.mean = torch.tensor(list(mean), dtype=torch.float32)
        self.std = torch.tensor(list(std), dtype=torch.float32)
        self._shift = self.mean[:, None, None]
        self._scale = torch.where(self.std > 0, self.std, torch.ones(()))[:, None, None]
        self._inverse = 1 / self._scale

    def standardise(self, raw: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """Raw latents [..., C, H, W] of any float dtype -> model space, float32.

        out: a float32 tensor of the same shape for the result.
        """
        if out is None:
            out = torch.empty(raw.shape, dtype=torch.float32, device=raw.device)
        shift, inverse = self._shift.to(raw.device), self._inverse.to(raw.device)
        return out.copy_(raw).sub_(shift).mul_(inverse)

    def restore(self, model_space: torch.Tensor) -> torch.Tensor:
        """Model space [..., C, H, W] -> raw latents, float32."""
        device = model_space.device
        return torch.mul(model_space.float(), self._scale.to(device)).add_(self._shift.to(device))
