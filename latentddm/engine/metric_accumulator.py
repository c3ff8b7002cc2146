"""Running means of the metrics of training steps, without a device synchronisation in a step."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import Tensor


class MetricAccumulator:
    """Weighted means by name; the sums stay on the device until `collect`."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def add(self, name: str, values: Tensor, weights: Tensor | None = None) -> None:
        """Add `values` (any shape) to the mean of `name`, with `weights` of the same shape or 1."""
        values = values.detach().float()
        weights = torch.ones_like(values) if weights is None else weights.float()
        added = torch.stack([(values * weights).sum(), weights.sum()])
        self._sums[name] = self._sums[name] + added if name in self._sums else added

    def collect(self, accelerator: Accelerator) -> dict[str, float]:
        """The means over all processes since the last call; a name of total weight 0 is omitted."""
        if not self._sums:
            return {}
        sums = accelerator.reduce(torch.stack(list(self._sums.values())), "sum").cpu()
        names, self._sums = list(self._sums), {}
        return {
            name: float(total / weight)
            for name, (total, weight) in zip(names, sums, strict=True)
            if weight > 0
        }
