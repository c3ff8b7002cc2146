"""How close two pictures are: numbers on uint8 pixels."""

from __future__ import annotations

import torch

from latentddm.engine.errors import UserError

SSIM_WINDOW = 11
"""Pixels a side of the Gaussian window of SSIM, with a standard deviation of 1.5."""


def psnr(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio per image in dB [B], peak 255; infinite where images are equal.

    `first`, `second`: pixels uint8 [B,H,W,3].
    """
    squared_error = (first.double() - second.double()).square().mean(dim=(1, 2, 3))  # [B]
    return 10 * torch.log10(255**2 / squared_error)


def ssim(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Structural similarity (Wang et al. 2004) per image [B], mean of the colours; 1 for equal.

    `first`, `second`: pixels uint8 [B,H,W,3]. UserError below 11 pixels a side.
    """
    if min(first.shape[1:3]) < SSIM_WINDOW:
        raise UserError(
            f"SSIM needs pictures of {SSIM_WINDOW} pixels a side at least, not "
            f"{first.shape[2]}x{first.shape[1]}; leave it out or take larger ones."
        )
    try:
        from torchmetrics.functional.image import structural_similarity_index_measure
    except ImportError:
        raise UserError(
            "SSIM needs the package torchmetrics; run `pip install torchmetrics`."
        ) from None
    values = structural_similarity_index_measure(
        first.permute(0, 3, 1, 2).float(),
        second.permute(0, 3, 1, 2).float(),
        sigma=1.5,
        kernel_size=SSIM_WINDOW,
        data_range=255.0,
        reduction="none",
    )
    return torch.as_tensor(values)
