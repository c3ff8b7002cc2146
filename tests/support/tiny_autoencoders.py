"""One tiny network of each supported class with random weights; random pixels and latents."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderTiny, VQModel

from autoencoder.portraits import draw_portrait
from latentddm.engine.seeding import torch_generator

BLOCKS = {
    "block_out_channels": (8, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 4,
}
DC_STAGES = {"block_out_channels": (8, 16, 16), "qkv_multiscales": ((), (), (5,))}

MAKERS = {
    "kl": lambda: AutoencoderKL(**BLOCKS, latent_channels=4),
    "flux": lambda: AutoencoderKL(
        **BLOCKS, latent_channels=4, use_quant_conv=False, use_post_quant_conv=False
    ),
    "vq": lambda: VQModel(**BLOCKS, latent_channels=6, vq_embed_dim=3, num_vq_embeddings=16),
    "tiny": lambda: AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    ),
    "dc": lambda: AutoencoderDC(
        latent_channels=8,
        attention_head_dim=8,
        encoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
        encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        **{
            f"{half}_{name}": value
            for half in ("encoder", "decoder")
            for name, value in DC_STAGES.items()
        },
    ),
}
CHANNELS = {"kl": 4, "flux": 4, "vq": 3, "tiny": 4, "dc": 8}
FACTORS = {"kl": 2, "flux": 2, "vq": 2, "tiny": 2, "dc": 4}


def save_network(kind: str, folder: Path, **options: object) -> Path:
    """A folder of diffusers with the tiny network of that kind and deterministic weights."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        MAKERS[kind]().save_pretrained(folder, **options)
    return folder


def save_grey(folder: Path) -> Path:
    """The tiny `kl`, whose reconstructions of anything are nearly grey."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        network = MAKERS["kl"]()
    with torch.no_grad():
        network.decoder.conv_out.weight *= 0.02
        network.decoder.conv_out.bias.zero_()
    network.save_pretrained(folder)
    return folder


def grey_pixels(count: int, size: int) -> torch.Tensor:
    """Images of little contrast, uint8 [count,size,size,3]: `save_grey` keeps 20 dB of them."""
    portraits = [torch.from_numpy(draw_portrait(index, size)[0]) for index in range(count)]
    return 118 + torch.stack(portraits) // 16


def random_pixels(count: int, size: int) -> torch.Tensor:
    """Uniform noise, uint8 [count,size,size,3]."""
    generator = torch_generator(0, "test pixels")
    return torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=generator)


def random_latents(count: int, channels: int, size: int) -> torch.Tensor:
    """Normal noise, float32 [count,channels,size,size]."""
    return torch.randn(count, channels, size, size, generator=torch_generator(0, "test latents"))
