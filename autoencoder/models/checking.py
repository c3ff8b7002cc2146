"""Does an autoencoder give back what it was shown? Asked before anything is encoded with it."""

from __future__ import annotations

import torch

from autoencoder.metrics import psnr
from autoencoder.models.base import Autoencoder
from latentddm.engine.errors import UserError

LOWEST_PSNR = 20.0
SAME_PICTURE = 0.9
"""The correlation of pixels above which two pictures differ in brightness and contrast only."""


def check_reconstruction(
    autoencoder: Autoencoder, pixels: torch.Tensor, lowest: float = LOWEST_PSNR
) -> float:
    """The mean PSNR in dB of reconstructing ordinary images, pixels uint8 [B,H,W,3].

    UserError with the likely cause if it is below `lowest`.
    """
    reconstruction = autoencoder.reconstruct(pixels).cpu()
    original = pixels.cpu()
    reached = float(psnr(original, reconstruction).mean())
    if reached >= lowest:
        return reached
    if _correlation(original, reconstruction) >= SAME_PICTURE:
        cause = (
            "The pictures are right but for brightness and contrast: its pixel range or the scale "
            "of its latents is not what the configuration says"
        )
    else:
        cause = (
            "The pictures have little to do with the originals: weights that are wrong, not "
            "trained, or of an encoder and a decoder that do not belong together"
        )
    raise UserError(
        f"The autoencoder {autoencoder.reference} reconstructs images with a PSNR of "
        f"{reached:.1f} dB, at least {lowest:g} dB are needed. {cause}; use other weights."
    )


def _correlation(first: torch.Tensor, second: torch.Tensor) -> float:
    """Between the values of all pixels: the same for any gain and offset."""
    return float(
        torch.corrcoef(torch.stack([first.double().flatten(), second.double().flatten()]))[0, 1]
    )
