"""Everything that defines an autoencoder's training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from autoencoder.losses import LossConfig
from latentddm.engine.config import MISSING
from latentddm.engine.ema import EMAConfig
from latentddm.engine.optimizer import OptimizerConfig
from latentddm.engine.task import SinglePhaseConfig


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """The shape of the AutoencoderKL; its factor is 2 to the number of widths less one."""

    widths: tuple[int, ...] = (64, 128, 256, 256)
    blocks: int = 2  # residual blocks at each level of the encoder; the decoder has one more
    latent_channels: int = 4
    norm_groups: int = 32
    attention: bool = True  # in the middle, at the latent's resolution


@dataclass(frozen=True, kw_only=True)
class AdversarialConfig:
    """The PatchGAN discriminator that learns beside the autoencoder; a weight of 0 leaves it out.

    The adaptive weight makes its gradient as large as that of the other terms; `weight` scales it.
    """

    weight: float = 0.0
    start_images: int = 0  # it begins when so many images are seen: blur must be learnt away first
    layers: int = 3  # that halve the picture; each judgement covers a patch of 70 pixels with 3
    width: int = 64
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """Everything that defines an autoencoder's training."""

    images: str = MISSING
    size: int = 256
    output: str = MISSING
    seed: int = 0
    flip: bool = True  # mirror half of the images
    workers: int = 2
    start: str | None = None  # an AutoencoderKL folder or 'portraits'; `network` is then not used
    network: NetworkConfig = field(default_factory=NetworkConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    adversarial: AdversarialConfig = field(default_factory=AdversarialConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    loop: SinglePhaseConfig
    ema: EMAConfig = field(default_factory=lambda: EMAConfig(widths=(0.05,), snapshots=0))
    precision: Literal["no", "bf16", "fp16"] = "no"
