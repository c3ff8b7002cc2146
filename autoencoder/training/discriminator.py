"""The PatchGAN discriminator of reconstructions and images, and its two losses.

PatchGAN and the hinge loss are those of taming-transformers, of which only modules without
dependencies beyond torch and torchvision are imported. The adaptive weight is that of VQGAN (Esser
et al., arXiv 2012.09841, eq. 7).
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from autoencoder.training.config import AdversarialConfig
from latentddm.engine.errors import UserError
from latentddm.engine.metric_accumulator import MetricAccumulator
from latentddm.engine.seeding import derive_seed
from latentddm.engine.task import SinglePhaseConfig, whole_span
from latentddm.engine.trainable_module import TrainableModule

LARGEST_ADAPTIVE_WEIGHT = 1e4
SMALLEST_GRADIENT = 1e-4


class Discriminator:
    """A discriminator and its training; its whole state is `network` and `trainable.optimizer`."""

    def __init__(
        self,
        config: AdversarialConfig,
        loop: SinglePhaseConfig,
        seed: int,
        accelerator: Accelerator,
    ) -> None:
        self.config, self.accelerator = config, accelerator
        self.network = build_discriminator(config, seed)
        self.trainable = TrainableModule(
            _RealAndFake(self.network),
            config.optimizer,
            loop,
            whole_span(loop),
            accelerator,
        )

    def has_started(self, images: int) -> bool:
        """Whether the adversarial loss is part of the step after the first `images`."""
        return images >= self.config.start_images

    def generator_loss(
        self, reconstruction_loss: Tensor, reconstruction: Tensor, last_layer: Tensor
    ) -> Tensor:
        """The weighted adversarial loss of the autoencoder, w * lambda * -mean(D(x)): a scalar.

        reconstruction_loss: the scalar of the other image terms, a function of `reconstruction`
        [B,3,H,W]. lambda: `adaptive_weight` at `last_layer`.
        """
        self.network.requires_grad_(False)  # gradients for the autoencoder alone
        with self.accelerator.autocast():
            logits = self.network(reconstruction)
        loss = -logits.float().mean()
        return self.config.weight * adaptive_weight(reconstruction_loss, loss, last_layer) * loss

    def step(
        self, target: Tensor, reconstruction: Tensor, images: int, accumulator: MetricAccumulator
    ) -> None:
        """One optimizer step on the hinge loss; `target` and `reconstruction`: [B,3,H,W]."""
        from taming.modules.losses.vqperceptual import hinge_d_loss

        self.network.requires_grad_(True)
        for part in self.trainable.micro_batches(len(target)):
            with self.accelerator.autocast():
                real, fake = self.trainable.wrapped(target[part], reconstruction[part])
            loss = hinge_d_loss(real.float(), fake.float())
            self.trainable.backward(loss)
            accumulator.add("discriminator_loss", loss)
            accumulator.add("discriminator_real", real)
            accumulator.add("discriminator_fake", fake)
        self.trainable.step(images)


def build_discriminator(config: AdversarialConfig, seed: int) -> nn.Module:
    """A PatchGAN with initial weights from `seed`: images [B,3,H,W] -> logits [B,1,h,w]."""
    try:
        from taming.modules.discriminator.model import NLayerDiscriminator, weights_init
    except ImportError:
        raise UserError(
            "A discriminator needs the package taming-transformers; run "
            "`pip install taming-transformers`, or set adversarial.weight=0."
        ) from None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "discriminator"))
        network = NLayerDiscriminator(input_nc=3, ndf=config.width, n_layers=config.layers)
        return network.apply(weights_init)


def smallest_size(config: AdversarialConfig) -> int:
    """Pixels a side of the smallest image for which the discriminator has one logit."""
    return 3 * 2**config.layers  # two convolutions of 4 pixels follow the layers that halve


def adaptive_weight(
    reconstruction_loss: Tensor, generator_loss: Tensor, last_layer: Tensor
) -> Tensor:
    """lambda = |d L_rec / d last_layer| / (|d L_G / d last_layer| + 1e-4), at most 1e4 (eq. 7)."""
    gradients: Any = [
        torch.autograd.grad(loss, last_layer, retain_graph=True)[0].norm()
        for loss in (reconstruction_loss, generator_loss)
    ]
    ratio = gradients[0] / (gradients[1] + SMALLEST_GRADIENT)
    return ratio.clamp(0, LARGEST_ADAPTIVE_WEIGHT).detach()


class _RealAndFake(nn.Module):
    """Logits of images and of reconstructions in one forward pass, a requirement of DDP."""

    def __init__(self, discriminator: nn.Module) -> None:
        super().__init__()
        self.discriminator = discriminator

    def forward(self, target: Tensor, reconstruction: Tensor) -> tuple[Tensor, Tensor]:
        return self.discriminator(target), self.discriminator(reconstruction)
