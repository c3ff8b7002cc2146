"""The terms of an autoencoder's loss: images [B,3,H,W] in [-1, 1] -> one value per image, [B]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from autoencoder.perceptual import load_lpips
from latentddm.engine.metric_accumulator import MetricAccumulator


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of the terms; the weight of the adversarial term is in AdversarialConfig."""

    reconstruction: Literal["l1", "l2"] = "l1"
    gradient_weight: float = 0.0  # of the error in the differences of neighbouring pixels
    perceptual: Literal["none", "alex", "vgg"] = "none"  # LPIPS on this backbone
    perceptual_weight: float = 1.0
    perceptual_file: str | None = None  # weights of the backbone; null: downloaded once
    kl_weight: float = 1e-6


class ReconstructionLoss:
    """Weighted sum of the pixel loss, the gradient loss and LPIPS; terms of weight 0 are left out.

    (reconstruction, target, accumulator) -> [B]; every term is added to the accumulator by name.
    """

    def __init__(self, config: LossConfig, accelerator: Accelerator) -> None:
        self.config, self.accelerator = config, accelerator
        self._lpips: nn.Module | None = None
        if config.perceptual != "none" and config.perceptual_weight > 0:
            self._lpips = load_lpips(
                accelerator.device, backbone=config.perceptual, weights=config.perceptual_file
            )

    def __call__(
        self, reconstruction: Tensor, target: Tensor, accumulator: MetricAccumulator
    ) -> Tensor:
        config = self.config
        loss = pixel_loss(reconstruction, target, config.reconstruction)
        accumulator.add("reconstruction", loss)
        if config.gradient_weight > 0:
            edges = gradient_loss(reconstruction, target)
            accumulator.add("gradient", edges)
            loss = loss + config.gradient_weight * edges
        if self._lpips is not None:
            with self.accelerator.autocast():
                perceptual = self._lpips(reconstruction, target).flatten().float()
            accumulator.add("lpips", perceptual)
            loss = loss + config.perceptual_weight * perceptual
        squared = pixel_loss(reconstruction.detach(), target, "l2")
        accumulator.add("psnr", 10 * torch.log10(4 / squared))  # the range [-1, 1] has a peak of 2
        return loss


def pixel_loss(images: Tensor, target: Tensor, kind: Literal["l1", "l2"]) -> Tensor:
    """Mean absolute (l1) or mean squared (l2) error, [B]."""
    difference = images - target
    error = difference.abs() if kind == "l1" else difference.square()
    return error.flatten(1).mean(1)


def gradient_loss(images: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error of the differences between neighbouring pixels, [B]; penalises blur."""
    difference = images - target
    rows = difference.diff(dim=2).abs().flatten(1).mean(1)
    columns = difference.diff(dim=3).abs().flatten(1).mean(1)
    return rows + columns


def kl_loss(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, exp(log_variance)) || N(0, 1)), summed over the latent [C,h,w], [B]."""
    terms = mean.square() + log_variance.exp() - 1 - log_variance
    return 0.5 * terms.flatten(1).sum(1)
