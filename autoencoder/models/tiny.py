"""The TAESD family from its own weights files: TAESD, TAESDXL, TAESD3, TAEF1 and TAEF2.

The architecture follows from the names and shapes of the tensors. All are diffusers'
AutoencoderTiny, with a pool branch, added here, in TAEF2's blocks at the lowest resolution.
"""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny
from diffusers.models.unets.unet_2d_blocks import AutoencoderTinyBlock
from torch import nn

from autoencoder.models.weights import SUFFIXES, Weights, fit_weights, read_weights
from latentddm.engine.errors import UserError

POOL_WIDENING = 4
POOL_GROUPS = 4


class PooledBlock(AutoencoderTinyBlock):
    """A block after a pool branch, whose group norm depends on the whole image."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, "relu")
        wide = POOL_WIDENING * channels
        self.pool = nn.Sequential(
            nn.Conv2d(channels, wide, 1, bias=False),
            nn.GroupNorm(POOL_GROUPS, wide),
            nn.ReLU(inplace=True),
            nn.Conv2d(wide, channels, 1, bias=False),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x + self.pool(x))


def find_weights(reference: Path) -> list[Path]:
    """The weights files of a reference: encoder and decoder, or one file of both, or none.

    reference: a file, a folder with *encoder.* and *decoder.*, or folder/prefix of these two.
    """
    if reference.is_file():
        if not reference.stem.endswith(("encoder", "decoder")):
            return [reference]
        return [_half(reference, "encoder"), _half(reference, "decoder")]
    if reference.is_dir():
        folder, pattern = reference, r".*encoder"
    else:
        folder, pattern = reference.parent, re.escape(reference.name) + r"[-_.]?encoder"
    if not folder.is_dir():
        return []
    encoders = {
        path.stem: path
        for path in sorted(folder.iterdir())
        if path.suffix in SUFFIXES and re.fullmatch(pattern, path.stem)
    }
    if len(encoders) > 1:
        raise UserError(
            f"{reference} holds several encoders ({', '.join(encoders)}); give one as a file."
        )
    return [_half(path, half) for path in encoders.values() for half in ("encoder", "decoder")]


def load_tiny(files: list[Path]) -> tuple[AutoencoderTiny, dict[str, Any], Weights]:
    """The network, configuration and weights of the files of `find_weights`, in their dtype."""
    if len(files) == 1:
        weights = read_weights(files[0])
    else:
        # In a decoder's file, layer 0 is a clamp without weights, which diffusers leaves out.
        weights = _renamed(files[0], "encoder", 0) | _renamed(files[1], "decoder", 1)
    source = " and ".join(str(path) for path in files)
    config = _read_config(weights, source)
    with torch.device("meta"):
        network = AutoencoderTiny(**config)
        for name in weights:
            if name.endswith("pool.0.weight"):
                _add_pool(network, name)
    fit_weights(network, weights, source)
    return network, config, weights


def _half(path: Path, half: str) -> Path:
    """The file of the encoder or decoder (`half`) beside `path`, of any suffix."""
    stem = path.stem[: -len(half)] + half
    suffixes = [".safetensors", path.suffix, *SUFFIXES]
    for candidate in (path.with_name(stem + suffix) for suffix in suffixes):
        if candidate.is_file():
            return candidate
    raise UserError(
        f"{path} has no {stem} ({', '.join(SUFFIXES)}) beside it; copy the missing file there."
    )


def _renamed(path: Path, half: str, offset: int) -> Weights:
    """The weights in `path` under their names in diffusers' AutoencoderTiny."""
    renamed = {}
    for name, tensor in read_weights(path).items():
        layer, _, rest = name.partition(".")
        if not layer.isdigit() or not rest:
            raise UserError(
                f"{path} is not a TAESD family {half}: it has a tensor {name}; check the path."
            )
        renamed[f"{half}.layers.{int(layer) - offset}.{rest}"] = tensor
    return renamed


def _read_config(weights: Weights, source: str) -> dict[str, Any]:
    """The arguments of AutoencoderTiny, from the names and shapes of the tensors."""
    try:
        encoder_width, in_channels = weights["encoder.layers.0.weight"].shape[:2]
        decoder_width, latent_channels = weights["decoder.layers.0.weight"].shape[:2]
    except (KeyError, ValueError):
        raise UserError(
            f"{source} has no first layers of an encoder and a decoder of the TAESD family; give "
            "the published files."
        ) from None
    encoder_blocks, decoder_blocks = (_stages(weights, half) for half in ("encoder", "decoder"))
    if len(encoder_blocks) != len(decoder_blocks):
        raise UserError(
            f"{source} do not match: the encoder has {len(encoder_blocks)} stages, the decoder "
            f"{len(decoder_blocks)}; give files of one autoencoder."
        )
    return {
        "in_channels": in_channels,
        "latent_channels": latent_channels,
        "encoder_block_out_channels": [encoder_width] * len(encoder_blocks),
        "decoder_block_out_channels": [decoder_width] * len(decoder_blocks),
        "num_encoder_blocks": encoder_blocks,
        "num_decoder_blocks": decoder_blocks,
    }


def _stages(weights: Weights, half: str) -> list[int]:
    """The numbers of blocks between consecutive convolutions outside of blocks."""

    def layers(rest: str) -> list[int]:
        found = (re.fullmatch(rf"{half}\.layers\.(\d+)\.{rest}", name) for name in weights)
        return sorted(int(match[1]) for match in found if match)

    blocks = layers(r"conv\.0\.weight")
    return [
        sum(start < block < stop for block in blocks) for start, stop in pairwise(layers("weight"))
    ]


def _add_pool(network: AutoencoderTiny, name: str) -> None:
    """Add a pool branch to the block of the tensor `name` ("encoder.layers.11.pool...")."""
    half, _, layer, *_ = name.split(".")
    layers = getattr(network, half).layers
    layers[int(layer)] = PooledBlock(network.config[f"{half}_block_out_channels"][0])
