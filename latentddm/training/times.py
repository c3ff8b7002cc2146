"""Training times at which few-step samplers evaluate the network, among others."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def partly_on_grid(
    noise: Tensor, others: Callable[[Tensor], Tensor], share: float, steps: int
) -> Tensor:
    """A share of times 1 / k, 2 / k, ..., 1, k = steps, each as often; the others as given.

    noise: standard normal, [B]; others: times from such noise.
    """
    if share == 0:
        return others(noise)
    # Phi(z) is uniform: below the share it chooses a time of the grid, and the rest is stretched
    # over (0, 1) again, so that one number a sample is enough.
    uniform, tiny = torch.special.ndtr(noise), torch.finfo(noise.dtype).eps
    on_grid = (uniform / share * steps).ceil().clamp_min(1) / steps
    rest = (uniform - share) / max(1 - share, tiny)
    off_grid = others(torch.special.ndtri(rest.clamp(tiny, 1 - tiny)))
    return torch.where(uniform < share, on_grid, off_grid)
