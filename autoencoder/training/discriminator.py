"""The discriminator that learns to tell reconstructions from images, and what it teaches.

PatchGAN and the hinge loss are taming-transformers'; only its modules that need nothing but torch
and torchvision are imported. The adaptive weight is that of VQGAN (Esser et al., arXiv 2012.09841,
eq. 7).
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


class Adversary:
    """A discriminator in training; network and optimizer of `trainable` are all its state."""

    def __init__(
        self,
        config: AdversarialConfig,
        loop: SinglePhaseConfig,
        seed: int,
        accelerator: Accelerator,
    ) -> None:
        self.config, self.accelerator = config, accelerator
        self.discriminator = build_discriminator(config, seed)
        self.trainable = TrainableModule(
            _TellingApart(self.discriminator),
            config.optimizer,
            loop,
            whole_span(loop),
            accelerator,
        )

    def has_started(self, images: int) -> bool:
        """Whether it takes part in the step after the first `images`."""
        return images >= self.config.start_images

    def generator_loss(
        self, unlikeness: Tensor, reconstruction: Tensor, last_layer: Tensor
    ) -> Tensor:
        """What the autoencoder is to minimise for being taken for real: a scalar, weighted.

        unlikeness: the other terms that compare pictures, a scalar made from `reconstruction`.
        """
        self.discriminator.requires_grad_(False)  # it is only asked here, and learns elsewhere
        with self.accelerator.autocast():
            logits = self.discriminator(reconstruction)
        deception = -logits.float().mean()
        return self.config.weight * adaptive_weight(unlikeness, deception, last_layer) * deception

    def learn(
        self, target: Tensor, reconstruction: Tensor, images: int, accumulator: MetricAccumulator
    ) -> None:
        """One step of telling images from reconstructions, both [B,3,H,W]."""
        from taming.modules.losses.vqperceptual import hinge_d_loss

        self.discriminator.requires_grad_(True)
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
    """A PatchGAN with its own initial weights: images [B,3,H,W] -> logits [B,1,h,w]."""
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
    """Pixels a side of the smallest picture that the discriminator makes a judgement on."""
    return 3 * 2**config.layers  # two convolutions of 4 pixels follow the layers that halve


def adaptive_weight(unlikeness: Tensor, deception: Tensor, last_layer: Tensor) -> Tensor:
    """|d unlikeness| / (|d deception| + 1e-4) by the last layer, at most 1e4 (eq. 7)."""
    gradients: Any = [
        torch.autograd.grad(term, last_layer, retain_graph=True)[0].norm()
        for term in (unlikeness, deception)
    ]
    ratio = gradients[0] / (gradients[1] + SMALLEST_GRADIENT)
    return ratio.clamp(0, LARGEST_ADAPTIVE_WEIGHT).detach()


class _TellingApart(nn.Module):
    """Both judgements in one forward pass, which is what wrappers for many processes count on."""

    def __init__(self, discriminator: nn.Module) -> None:
        super().__init__()
        self.discriminator = discriminator

    def forward(self, target: Tensor, reconstruction: Tensor) -> tuple[Tensor, Tensor]:
        return self.discriminator(target), self.discriminator(reconstruction)
