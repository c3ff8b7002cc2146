"""Pixel metrics of reconstruction on uint8 pixels: PSNR and SSIM."""

from __future__ import annotations

import torch

from latentddm.engine.errors import UserError

SSIM_WINDOW = 11
"""Pixels a side of SSIM's Gaussian window, of standard deviation 1.5."""


def psnr(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio of each pair in dB, float64 [B]: 10 log10(255^2 / MSE).

    first, second: pixels uint8 [B,H,W,3]. Infinite for equal images.
    """
    squared_error = (first.double() - second.double()).square().mean(dim=(1, 2, 3))  # [B]
    return 10 * torch.log10(255**2 / squared_error)


def ssim(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Structural similarity (Wang et al. 2004) of each pair, mean over the colours, [B].

    first, second: pixels uint8 [B,H,W,3]. 1 for equal images. UserError below 11 pixels a side.
    """
    if min(first.shape[1:3]) < SSIM_WINDOW:
        raise UserError(
            f"SSIM needs images of at least {SSIM_WINDOW} pixels a side, not "
            f"{first.shape[2]}x{first.shape[1]}; leave the metric out or give larger images."
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
