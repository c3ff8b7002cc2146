"""The network in training: a diffusers AutoencoderKL, new or from given weights."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from autoencoder.models import load_autoencoder
from autoencoder.training.config import AutoencoderConfig
from latentddm.engine.errors import UserError

SHIPPED_WEIGHTS = Path(__file__).parents[1] / "pretrained"


class Autoencoding(nn.Module):
    """Images -> (reconstruction, posterior mean, posterior log variance), in one forward pass."""

    def __init__(self, network: AutoencoderKL) -> None:
        super().__init__()
        self.network = network

    @property
    def last_layer(self) -> Tensor:
        """Weight of the decoder's last convolution."""
        return self.network.decoder.conv_out.weight

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        posterior = self.network.encode(images).latent_dist
        latents = posterior.mean + posterior.std * noise
        return self.network.decode(latents).sample, posterior.mean, posterior.logvar


def build_network(config: AutoencoderConfig) -> AutoencoderKL:
    """The network to train; UserError if its factor does not divide the image size."""
    network = _new_network(config) if config.start is None else _load_start(config.start)
    factor = downsampling_factor(network)
    if config.size % factor:
        raise UserError(
            f"size is {config.size}, but the autoencoder's downsampling factor is {factor}; "
            f"choose a multiple of {factor}."
        )
    return network


def downsampling_factor(network: AutoencoderKL) -> int:
    """Pixels per latent position along one side."""
    return 2 ** (len(network.config.block_out_channels) - 1)


def start_reference(start: str) -> str:
    """The reference of the autoencoder `start`: embedded weights by name, or as it stands."""
    shipped = SHIPPED_WEIGHTS / start
    return str(shipped) if shipped.is_dir() else start


def _load_start(start: str) -> AutoencoderKL:
    loaded = load_autoencoder(start_reference(start)).network
    if not isinstance(loaded, AutoencoderKL):
        raise UserError(
            f"start is {start}, of class {type(loaded).__name__}; give a folder of AutoencoderKL."
        )
    return loaded.requires_grad_(True).train()


def _new_network(config: AutoencoderConfig) -> AutoencoderKL:
    shape = config.network
    levels = len(shape.widths)
    torch.manual_seed(config.seed)  # of the initial weights; all later draws are derived
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
