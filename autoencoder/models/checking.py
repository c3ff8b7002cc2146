"""Check of an autoencoder's reconstruction, before anything is encoded with it."""

from __future__ import annotations

import torch

from autoencoder.metrics import psnr
from autoencoder.models.base import Autoencoder
from latentddm.engine.errors import UserError

LOWEST_PSNR = 20.0
SAME_IMAGE = 0.9
"""Correlation of pixels above which two images differ mainly in brightness and contrast."""


def check_reconstruction(
    autoencoder: Autoencoder, pixels: torch.Tensor, lowest: float = LOWEST_PSNR
) -> float:
    """Mean PSNR of the reconstructions in dB; pixels: ordinary images, uint8 [B,H,W,3].

    UserError with the likely cause for a PSNR below `lowest`.
    """
    reconstruction = autoencoder.reconstruct(pixels).cpu()
    original = pixels.cpu()
    reached = float(psnr(original, reconstruction).mean())
    if reached >= lowest:
        return reached
    if _correlation(original, reconstruction) >= SAME_IMAGE:
        cause = (
            "only brightness and contrast are wrong, so the pixel range or the latent scale "
            "differs from that of the configuration"
        )
    else:
        cause = (
            "they hardly resemble the originals, so the weights are wrong, untrained, or of an "
            "encoder and a decoder that do not match"
        )
    raise UserError(
        f"The reconstructions of the autoencoder {autoencoder.reference} have a PSNR of "
        f"{reached:.1f} dB, below {lowest:g} dB: {cause}; give other weights."
    )


def _correlation(first: torch.Tensor, second: torch.Tensor) -> float:
    """Pearson's correlation over all pixel values; invariant to gain and offset."""
    return float(
        torch.corrcoef(torch.stack([first.double().flatten(), second.double().flatten()]))[0, 1]
    )
