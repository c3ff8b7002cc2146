"""Configuration of an autoencoder's training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from autoencoder.images import SampleKeys
from autoencoder.training.losses import LossConfig
from latentddm.engine.config import MISSING
from latentddm.engine.ema import EMAConfig
from latentddm.engine.optimizer import OptimizerConfig
from latentddm.engine.task import SinglePhaseConfig


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Shape of the AutoencoderKL; its downsampling factor is 2 ** (len(widths) - 1)."""

    widths: tuple[int, ...] = (64, 128, 256, 256)
    blocks: int = 2  # residual blocks per level of the encoder; the decoder has one more
    latent_channels: int = 4
    norm_groups: int = 32
    attention: bool = True  # in the middle, at the resolution of the latent


@dataclass(frozen=True, kw_only=True)
class AdversarialConfig:
    """The PatchGAN discriminator, trained beside the autoencoder; weight 0 leaves it out.

    `weight` scales the adaptive weight, which makes the norm of the adversarial gradient equal to
    that of the reconstruction loss.
    """

    weight: float = 0.0
    start_images: int = 0  # images seen before it starts: first the reconstruction loss alone
    layers: int = 3  # convolutions of stride 2; with 3, a logit depends on a patch of 70 pixels
    width: int = 64
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """Everything that defines an autoencoder's training."""

    images: str = MISSING
    keys: SampleKeys = "webdataset"  # of tar shards; whole: the names of samples have dots
    size: int = 256
    output: str = MISSING
    seed: int = 0
    flip: bool = True  # mirror half of the images
    workers: int = 2
    start: str | None = None  # an AutoencoderKL folder or 'portraits', in the place of `network`
    network: NetworkConfig = field(default_factory=NetworkConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    adversarial: AdversarialConfig = field(default_factory=AdversarialConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    loop: SinglePhaseConfig
    ema: EMAConfig = field(default_factory=lambda: EMAConfig(widths=(0.05,), snapshots=0))
    precision: Literal["no", "bf16", "fp16"] = "no"
