"""Numbers that depend on t: beta, lambda and the weights of views."""

from __future__ import annotations

import torch
from torch import Tensor


def linear_in_time(at_data: float | None, at_noise: float, t: Tensor) -> Tensor | float:
    """at_data + (at_noise - at_data) t, [B], float32 or better; at_noise if at_data is None."""
    if at_data is None:
        return at_noise
    return at_data + (at_noise - at_data) * t.to(torch.promote_types(t.dtype, torch.float32))
