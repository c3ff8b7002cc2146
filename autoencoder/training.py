"""Trains an autoencoder on images: the config, the task, and `train_autoencoder`.

The result is a diffusers `AutoencoderKL` folder, RUN/autoencoder.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.optim import Optimizer

from autoencoder.images import ImageSource, Preprocessing, open_source
from autoencoder.losses import LossConfig, gradient_loss, kl_loss, reconstruction_loss
from autoencoder.models import load_autoencoder
from autoencoder.pictures import image_grid, save_image
from autoencoder.pixel_stream import pixel_batches
from latentddm.engine.config import MISSING, require_values, to_yaml
from latentddm.engine.ema import EMA
from latentddm.engine.errors import RequestError
from latentddm.engine.files import atomic_path
from latentddm.engine.loop import (
    LOOP_KEYS_THAT_MAY_CHANGE,
    LoopConfig,
    process_batch_size,
    run_loop,
    start_processes,
)
from latentddm.engine.means import Means
from latentddm.engine.optimisation import (
    OptimizerConfig,
    learning_rate,
    make_optimizer,
    optimizer_step,
)
from latentddm.engine.randomness import torch_generator
from latentddm.engine.run import RunFolder

RUN_KIND = "autoencoder"
PREVIEW_IMAGES = 16
SHIPPED_WEIGHTS = Path(__file__).parent / "pretrained"


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """The shape of the AutoencoderKL; its factor is 2 to the number of widths less one."""

    widths: tuple[int, ...] = (64, 128, 256, 256)
    blocks: int = 2  # residual blocks at each level of the encoder; the decoder has one more
    latent_channels: int = 4
    norm_groups: int = 32
    attention: bool = True  # in the middle, at the latent's resolution


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
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    loop: LoopConfig
    ema_std: float = 0.05
    precision: Literal["no", "bf16", "fp16"] = "no"


def train_autoencoder(config: AutoencoderConfig, source: ImageSource | None = None) -> Path:
    """Train or resume the run at `config.output`; returns the folder of the finished autoencoder.

    `source` stands in for `config.images` when the images are open already.
    """
    require_values(config, "images", "output")
    source = source if source is not None else open_source(config.images, size=config.size)
    network = build_network(config)
    run = RunFolder.create(Path(config.output), RUN_KIND, config, LOOP_KEYS_THAT_MAY_CHANGE)
    accelerator = start_processes(run, config.precision)
    task = AutoencoderTask(config, network, source, accelerator)
    run_loop(task, run, config.loop, accelerator)
    accelerator.end_training()
    result = run.path / "autoencoder"
    if accelerator.is_main_process:
        task.save(result)
    accelerator.wait_for_everyone()
    return result


def describe(config: AutoencoderConfig) -> str:
    """What `train_autoencoder` would do: config, network, images. Touches nothing."""
    require_values(config, "images", "output")
    source = open_source(config.images, size=config.size)
    parameters = build_network(config).num_parameters()
    return f"{to_yaml(config)}\n{parameters:,} parameters; {len(source):,} images."


def build_network(config: AutoencoderConfig) -> AutoencoderKL:
    """The network to train; RequestError if the image size does not fit its factor."""
    network = _new_network(config) if config.start is None else _load_start(config.start)
    factor = downsampling_factor(network)
    if config.size % factor:
        raise RequestError(
            f"size is {config.size}, but the autoencoder has {factor} pixels to a latent; "
            f"choose a multiple of {factor}."
        )
    return network


def downsampling_factor(network: AutoencoderKL) -> int:
    """How many pixels, along an edge, one latent stands for."""
    return 2 ** (len(network.config.block_out_channels) - 1)


def _load_start(start: str) -> AutoencoderKL:
    shipped = SHIPPED_WEIGHTS / start
    loaded = load_autoencoder(shipped if shipped.is_dir() else start).network
    if not isinstance(loaded, AutoencoderKL):
        raise RequestError(
            f"start is {start}, which is {type(loaded).__name__}; training needs AutoencoderKL."
        )
    return loaded.requires_grad_(True).train()


def _new_network(config: AutoencoderConfig) -> AutoencoderKL:
    shape = config.network
    levels = len(shape.widths)
    torch.manual_seed(config.seed)  # the initial weights; every later draw is derived
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=shape.widths,
        layers_per_block=shape.blocks,
        latent_channels=shape.latent_channels,
        norm_num_groups=shape.norm_groups,
        mid_block_add_attention=shape.attention,
        sample_size=config.size,
    )


class Autoencoding(nn.Module):
    """Images -> (reconstruction, posterior mean, posterior log variance), in one forward pass."""

    def __init__(self, network: AutoencoderKL) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        posterior = self.network.encode(images).latent_dist
        latents = posterior.mean + posterior.std * noise
        return self.network.decode(latents).sample, posterior.mean, posterior.logvar


class AutoencoderTask:
    """The autoencoder's part of the training loop."""

    def __init__(
        self,
        config: AutoencoderConfig,
        network: AutoencoderKL,
        source: ImageSource,
        accelerator: Accelerator,
    ) -> None:
        self.config, self.source, self.accelerator = config, source, accelerator
        self.preprocessing = Preprocessing(size=config.size)
        self.autoencoding = Autoencoding(network.to(accelerator.device))
        self.ema = EMA(self.autoencoding, config.ema_std)
        self.optimizer = make_optimizer(self.autoencoding, config.optimizer)
        self.wrapped, self.wrapped_optimizer = accelerator.prepare(
            self.autoencoding, self.optimizer
        )
        self._preview_images: Tensor | None = None

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        return {"network": self.autoencoding.network, "ema": self.ema.module.network}

    @property
    def optimizers(self) -> Mapping[str, Optimizer]:
        return {"optimizer": self.optimizer}

    def batches(self, start: int) -> Iterator[Tensor]:
        return pixel_batches(
            self.source,
            self.preprocessing,
            process_batch_size(self.config.loop.batch_size, self.accelerator),
            seed=self.config.seed,
            start=start,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
            flip=self.config.flip,
            workers=self.config.workers,
        )

    def step(self, batch: Tensor, images: int, means: Means) -> None:
        config, loss_config = self.config, self.config.loss
        target = _to_model_range(batch, self.accelerator.device)
        with self.accelerator.autocast():
            reconstruction, mean, log_variance = self.wrapped(target, self._noise(images, target))
        reconstruction = reconstruction.float()

        error = reconstruction_loss(reconstruction, target, loss_config.reconstruction)
        divergence = kl_loss(mean.float(), log_variance.float())
        loss = error + loss_config.kl_weight * divergence
        if loss_config.gradient_weight > 0:
            loss = loss + loss_config.gradient_weight * gradient_loss(reconstruction, target)

        rate = learning_rate(config.optimizer, images, config.loop.images)
        norm = optimizer_step(
            self.accelerator,
            self.autoencoding,
            self.wrapped_optimizer,
            loss.mean(),
            config.optimizer,
            images,
            rate,
        )
        self.ema.update(images + config.loop.batch_size, config.loop.batch_size)
        means.add("loss", loss)
        means.add("reconstruction", error)
        means.add("kl", divergence)
        means.add("gradient_norm", norm)
        squared = reconstruction_loss(reconstruction.detach(), target, "l2")
        means.add("psnr", 10 * torch.log10(4 / squared))  # the range [-1, 1] has a peak of 2

    def preview(self, path: Path) -> None:
        """Originals above their reconstructions."""
        if self._preview_images is None:
            count = min(PREVIEW_IMAGES, len(self.source))
            first = pixel_batches(self.source, self.preprocessing, count, seed=self.config.seed)
            self._preview_images = next(first)
        target = _to_model_range(self._preview_images, self.accelerator.device)
        with torch.no_grad():
            decoded = self.ema.module(target, torch.zeros(1, device=target.device))[0]
        pixels = ((decoded + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        rows = torch.cat([self._preview_images, pixels.permute(0, 2, 3, 1).cpu()])
        save_image(path, image_grid(rows.numpy(), columns=len(self._preview_images)))

    def save(self, folder: Path) -> None:
        """Write the averaged network to `folder`, as diffusers reads it; replaces an older one."""
        averaged: Any = self.ema.module.network
        with atomic_path(folder) as temporary:
            averaged.save_pretrained(temporary)
            shutil.rmtree(folder, ignore_errors=True)

    def _noise(self, images: int, target: Tensor) -> Tensor:
        """Posterior noise for the images after the first `images`; this rank's part of it."""
        network = self.autoencoding.network
        share, rank = len(target), self.accelerator.process_index
        edge = target.shape[-1] // downsampling_factor(network)
        channels = network.config.latent_channels
        shape = (share * self.accelerator.num_processes, channels, edge, edge)
        generator = torch_generator(self.config.seed, "posterior", images, device=target.device)
        noise = torch.randn(shape, generator=generator, device=target.device)
        return noise[rank * share : (rank + 1) * share]


def _to_model_range(pixels: Tensor, device: torch.device) -> Tensor:
    """Pixels uint8 [B, H, W, 3] -> [B, 3, H, W] in [-1, 1]."""
    return pixels.to(device).permute(0, 3, 1, 2).float().contiguous() / 127.5 - 1
