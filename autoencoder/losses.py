"""What an autoencoder is trained to minimise. Images: [B, 3, H, W] in [-1, 1]; results: [B]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The weights of the terms; the discriminator's are in AdversarialConfig."""

    reconstruction: Literal["l1", "l2"] = "l1"
    gradient_weight: float = 0.0  # of the error in the differences of neighbouring pixels
    perceptual: Literal["none", "alex", "vgg"] = "none"  # LPIPS on this backbone
    perceptual_weight: float = 1.0
    perceptual_file: str | None = None  # of the backbone's weights; null downloads them once
    kl_weight: float = 1e-6


def reconstruction_loss(images: Tensor, target: Tensor, kind: Literal["l1", "l2"]) -> Tensor:
    """Mean absolute or mean squared error, [B]."""
    difference = images - target
    error = difference.abs() if kind == "l1" else difference.square()
    return error.flatten(1).mean(1)


def gradient_loss(images: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error of the differences between neighbours, [B]: punishes blurred edges."""
    difference = images - target
    rows = difference.diff(dim=2).abs().flatten(1).mean(1)
    columns = difference.diff(dim=3).abs().flatten(1).mean(1)
    return rows + columns


def kl_loss(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, exp(log_variance)) || N(0, 1)) summed over the latent, [B]."""
    terms = mean.square() + log_variance.exp() - 1 - log_variance
    return 0.5 * terms.flatten(1).sum(1)
