"""How unlike its target a reconstruction is: every term of the loss that compares two pictures."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from autoencoder.losses import LossConfig, gradient_loss, reconstruction_loss
from autoencoder.perceptual import load_lpips
from latentddm.engine.metric_accumulator import MetricAccumulator


class Likeness:
    """Pixels, differences of pixels, and LPIPS, as far as the config weighs them."""

    def __init__(self, config: LossConfig, accelerator: Accelerator) -> None:
        self.config, self.accelerator = config, accelerator
        self._lpips: nn.Module | None = None
        if config.perceptual != "none" and config.perceptual_weight > 0:
            self._lpips = load_lpips(
                accelerator.device, backbone=config.perceptual, weights=config.perceptual_file
            )

    def __call__(self, reconstruction: Tensor, target: Tensor, means: MetricAccumulator) -> Tensor:
        """The weighted sum of the terms, [B]; images [B,3,H,W] in [-1,1]. Reports each term."""
        config = self.config
        unlikeness = reconstruction_loss(reconstruction, target, config.reconstruction)
        means.add("reconstruction", unlikeness)
        if config.gradient_weight > 0:
            edges = gradient_loss(reconstruction, target)
            means.add("gradient", edges)
            unlikeness = unlikeness + config.gradient_weight * edges
        if self._lpips is not None:
            with self.accelerator.autocast():
                perceived = self._lpips(reconstruction, target).flatten().float()
            means.add("lpips", perceived)
            unlikeness = unlikeness + config.perceptual_weight * perceived
        squared = reconstruction_loss(reconstruction.detach(), target, "l2")
        means.add("psnr", 10 * torch.log10(4 / squared))  # the range [-1, 1] has a peak of 2
        return unlikeness
