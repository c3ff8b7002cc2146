"""Training of an autoencoder as a task of the engine's loop."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.optim import Optimizer

from autoencoder.image_io import image_grid, save_image
from autoencoder.images import ImageSource, Preprocessing
from autoencoder.pixel_stream import pixel_batches
from autoencoder.training.config import AutoencoderConfig
from autoencoder.training.discriminator import Discriminator
from autoencoder.training.losses import ReconstructionLoss, kl_loss
from autoencoder.training.network import Autoencoding, downsampling_factor
from latentddm.engine.atomic_io import atomic_path, remove_folder
from latentddm.engine.cpu_threads import leave_room_for
from latentddm.engine.distributed import process_batch_size
from latentddm.engine.metric_accumulator import MetricAccumulator
from latentddm.engine.seeding import BatchDraws
from latentddm.engine.task import whole_span
from latentddm.engine.trainable_module import TrainableModule

PREVIEW_IMAGES = 16


class AutoencoderTask:
    """An AutoencoderKL, its moving averages and, with an adversarial weight, a discriminator."""

    def __init__(
        self,
        config: AutoencoderConfig,
        network: AutoencoderKL,
        source: ImageSource,
        accelerator: Accelerator,
    ) -> None:
        self.config, self.source, self.accelerator = config, source, accelerator
        self.preprocessing = Preprocessing(size=config.size)
        self.factor = downsampling_factor(network)
        self.latent_channels = network.config.latent_channels
        self.autoencoding = Autoencoding(network)
        self.trainable = TrainableModule(
            self.autoencoding,
            config.optimizer,
            config.loop,
            whole_span(config.loop),
            accelerator,
            config.ema,
        )
        self.averages = self.trainable.averages
        self.reconstruction_loss = ReconstructionLoss(config.loss, accelerator)
        self.discriminator: Discriminator | None = None
        if config.adversarial.weight > 0:
            self.discriminator = Discriminator(
                config.adversarial, config.loop, config.seed, accelerator
            )
        self._preview_images: Tensor | None = None

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        trained: dict[str, Any] = {"network": self.autoencoding, **self.averages.modules}
        modules = {name: autoencoding.network for name, autoencoding in trained.items()}
        if self.discriminator is not None:
            modules["discriminator"] = self.discriminator.network
        return modules

    @property
    def optimizers(self) -> Mapping[str, Optimizer]:
        optimizers: dict[str, Optimizer] = {"optimizer": self.trainable.optimizer}
        if self.discriminator is not None:
            optimizers["discriminator_optimizer"] = self.discriminator.trainable.optimizer
        return optimizers

    def batches(self, start: int) -> Iterator[Tensor]:
        leave_room_for(self.config.workers, self.accelerator.device.type)
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

    def step(self, batch: Tensor, images: int, accumulator: MetricAccumulator) -> None:
        target = _to_model_range(batch, self.accelerator.device)  # [B, 3, H, W]
        noise = self._posterior_noise(images, target)
        discriminator = self.discriminator
        if discriminator is not None and not discriminator.has_started(images):
            discriminator = None

        reconstructions = []
        for part in self.trainable.micro_batches(len(target)):
            with self.accelerator.autocast():
                reconstruction, *posterior = self.trainable.wrapped(target[part], noise[part])
            reconstruction = reconstruction.float()
            loss = self._loss(reconstruction, target[part], posterior, discriminator, accumulator)
            self.trainable.backward(loss)
            reconstructions.append(reconstruction.detach())
        accumulator.add("gradient_norm", *self.trainable.step(images))

        # The discriminator's step comes second, on the same images.
        if discriminator is not None:
            discriminator.step(target, torch.cat(reconstructions), images, accumulator)

    def _loss(
        self,
        reconstruction: Tensor,
        target: Tensor,
        posterior: list[Tensor],
        discriminator: Discriminator | None,
        accumulator: MetricAccumulator,
    ) -> Tensor:
        """Reconstruction loss + weighted KL + adversarial loss, the mean of a micro-batch."""
        reconstruction_loss = self.reconstruction_loss(reconstruction, target, accumulator).mean()
        mean, log_variance = posterior
        divergence = kl_loss(mean.float(), log_variance.float())
        loss = reconstruction_loss + self.config.loss.kl_weight * divergence.mean()
        if discriminator is not None:
            generator_loss = discriminator.generator_loss(
                reconstruction_loss, reconstruction, self.autoencoding.last_layer
            )
            accumulator.add("generator_loss", generator_loss)
            loss = loss + generator_loss
        accumulator.add("loss", loss)
        accumulator.add("kl", divergence)
        return loss

    def preview(self, path: Path) -> None:
        """A grid of the first images of the stream, above their reconstructions."""
        if self._preview_images is None:
            count = min(PREVIEW_IMAGES, len(self.source))
            first = pixel_batches(self.source, self.preprocessing, count, seed=self.config.seed)
            self._preview_images = next(first)
        target = _to_model_range(self._preview_images, self.accelerator.device)
        with torch.no_grad():
            decoded = self.averages.first(target, torch.zeros(1, device=target.device))[0]
        pixels = ((decoded + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        rows = torch.cat([self._preview_images, pixels.permute(0, 2, 3, 1).cpu()])
        if self.accelerator.is_main_process:
            save_image(path, image_grid(rows.numpy(), columns=len(self._preview_images)))

    def save(self, folder: Path) -> None:
        """Write the averaged network to `folder` in the format of diffusers, over an older one."""
        averaged: Any = self.modules["ema"]
        with atomic_path(folder) as temporary:
            averaged.save_pretrained(temporary)
            if folder.exists():
                remove_folder(folder)

    def _posterior_noise(self, images: int, target: Tensor) -> Tensor:
        """Standard normal noise [B, C, h, w] for the batch after the first `images`."""
        edge = target.shape[-1] // self.factor
        draws = BatchDraws(self.config.seed, "posterior", images, len(target), self.accelerator)
        return draws.normal(self.latent_channels, edge, edge)


def _to_model_range(pixels: Tensor, device: torch.device) -> Tensor:
    """Pixels uint8 [B, H, W, 3] -> [B, 3, H, W] in [-1, 1]."""
    return pixels.to(device).permute(0, 3, 1, 2).float().contiguous() / 127.5 - 1
