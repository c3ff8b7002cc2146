"""How close two pictures are: numbers on uint8 pixels."""

from __future__ import annotations

import torch


def psnr(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio per image in dB [B], peak 255; infinite where images are equal.

    `first`, `second`: pixels uint8 [B,H,W,3].
    """
    squared_error = (first.double() - second.double()).square().mean(dim=(1, 2, 3))  # [B]
    return 10 * torch.log10(255**2 / squared_error)
