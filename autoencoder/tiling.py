"""Tiled decoding: an image of any size, in the memory of one tile and one strip of the image.

The result is that of decoding at once, up to rounding, for three reasons: layers with attention and
all before the first upsampling run on the whole image; the group norms behind them use statistics
of the whole image (tiled_group_norm.py); and the overlap of tiles, within which one fades into the
other, covers the range of the padding at their borders.

Blended tiles with group statistics of their own, as in diffusers' enable_tiling, are simpler and
faster, but differ from decoding at once by 3 to 11 8-bit levels on average and by up to 181, where
these tiles differ by at most 1 (AutoencoderKL and TAEF2 at 1024 px, tools/results/tiled-decoding).
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from diffusers.models.attention_processor import Attention, SanaMultiscaleLinearAttention
from diffusers.models.upsampling import Upsample2D
from torch import nn

from autoencoder.models import Autoencoder
from autoencoder.models.base import Layer, round_pixels
from autoencoder.tiled_group_norm import Span, whole_image_norms
from latentddm.engine.errors import UserError

OVERLAP = 16
"""Smallest overlap of neighbouring tiles in cells. A cell is one position of the features."""
FADE = 4
"""Cells of the fade, in the middle of the overlap; the rest of the overlap is discarded."""
SMALLEST_TILE = 2 * OVERLAP
_PROBE = 4  # latents a side, enough to count cells per latent


@torch.no_grad()
def check_tile(autoencoder: Autoencoder, tile: int) -> None:
    """UserError for tiles that are too small, or an autoencoder without `decoder_layers`."""
    _begin(torch.zeros(1, autoencoder.latent_channels, _PROBE, _PROBE), autoencoder, tile)


def _begin(
    latents: torch.Tensor, autoencoder: Autoencoder, tile: int
) -> tuple[list[Layer], torch.Tensor, int]:
    """The layers that run on tiles, the features before them, and the cells of a latent.

    UserError as from `check_tile`.
    """
    layers = autoencoder.decoder_layers()
    if not layers:
        raise UserError(
            f"Tiled decoding needs the decoder_layers of {type(autoencoder).__name__}, the adapter "
            f"of {autoencoder.reference}; decode without tiles, or define them."
        )
    whole = count_whole_image_layers(layers)
    features = _chain(layers[:whole], autoencoder.checked_latents(latents))
    cells = features.shape[2] // latents.shape[2]
    if tile * cells < SMALLEST_TILE:
        raise UserError(
            f"Tiles of {tile} latents are too small for the autoencoder {autoencoder.reference}; "
            f"use at least {math.ceil(SMALLEST_TILE / cells)}."
        )
    return layers[whole:], features, cells


@torch.no_grad()
def decode_tiled(latents: torch.Tensor, autoencoder: Autoencoder, tile: int) -> torch.Tensor:
    """Raw latents [B,C,h,w] -> pixels uint8 [B,h*f,w*f,3] on the CPU, from tiles of `tile` latents.

    Tiles are decoded one after the other, each for all B images. UserError as from `check_tile`.
    """
    layers, features, cells = _begin(latents, autoencoder, tile)
    rows, columns = (spans(length, tile * cells) for length in features.shape[2:])

    def decode(part: torch.Tensor) -> torch.Tensor:
        return autoencoder.to_unit(_chain(layers, part))

    norms = [module for module in _modules(layers) if isinstance(module, nn.GroupNorm)]
    with whole_image_norms(norms, decode, features, rows, columns):
        return _decode_strips(features, decode, rows, columns, autoencoder.factor // cells)


def count_whole_image_layers(layers: list[Layer]) -> int:
    """The number of leading layers for the whole image.

    All up to the last layer with attention, and at least all before the first upsampling.
    """

    def holds(layer: Layer, *kinds: type[nn.Module]) -> bool:
        return any(isinstance(module, kinds) for module in _modules([layer]))

    numbers = range(len(layers))
    growing = [n for n in numbers if holds(layers[n], Upsample2D, nn.Upsample)]
    attending = [n for n in numbers if holds(layers[n], Attention, SanaMultiscaleLinearAttention)]
    return max(growing[0] if growing else 0, attending[-1] + 1 if attending else 0)


def spans(length: int, tile: int) -> list[Span]:
    """Tiles of one size over `length` cells, evenly spaced, with at least OVERLAP in common."""
    if length <= tile:
        return [Span(0, length, 0, length)]
    count = math.ceil((length - OVERLAP) / (tile - OVERLAP))
    starts = [round(step * (length - tile) / (count - 1)) for step in range(count)]
    cuts = [
        0,
        *((start + tile + after) // 2 for start, after in pairwise(starts)),
        length,
    ]
    return [
        Span(start, start + tile, own_start, own_stop)
        for start, (own_start, own_stop) in zip(starts, pairwise(cuts), strict=True)
    ]


def fade_weights(span: Span, scale: int) -> torch.Tensor:
    """The weight of each pixel of a tile along one axis, float32 [(stop - start) * scale].

    The weights of all tiles at one pixel sum to 1. scale: pixels per cell.
    """
    position = torch.arange(span.start * scale, span.stop * scale, dtype=torch.float64) + 0.5

    def rise(cut: int) -> torch.Tensor:
        ramp = (position - cut * scale) / (FADE / 2 * scale)
        return 0.5 + 0.5 * torch.sin(ramp.clamp(-1, 1) * (math.pi / 2))

    weights = torch.ones_like(position)
    if span.own_start > span.start:
        weights *= rise(span.own_start)
    if span.own_stop < span.stop:
        weights *= 1 - rise(span.own_stop)
    return weights.float()


def _decode_strips(
    features: torch.Tensor, decode: Layer, rows: list[Span], columns: list[Span], scale: int
) -> torch.Tensor:
    """The tiles of `features`, decoded row by row and faded together, as pixels uint8."""
    count, _, height, width = features.shape
    pixels = torch.empty(count, height * scale, width * scale, 3, dtype=torch.uint8)
    strip = torch.zeros(
        count, rows[0].stop * scale, width * scale, 3, device=features.device, dtype=torch.float32
    )
    for number, row in enumerate(rows):
        fade_down = fade_weights(row, scale).to(strip)[:, None, None]
        for column in columns:
            fade_across = fade_weights(column, scale).to(strip)[:, None]
            part = features[:, :, row.start : row.stop, column.start : column.stop]
            decoded = decode(part).mul_(fade_down).mul_(fade_across)
            strip[:, :, column.start * scale : column.stop * scale] += decoded
        # Lines above the start of the next row of tiles are complete.
        next_start = rows[number + 1].start if number + 1 < len(rows) else height
        finished = (next_start - row.start) * scale
        pixels[:, row.start * scale : next_start * scale] = round_pixels(strip[:, :finished]).cpu()
        unfinished = strip[:, finished:].clone()
        strip.zero_()[:, : unfinished.shape[1]] = unfinished
    return pixels


def _chain(layers: list[Layer], features: torch.Tensor) -> torch.Tensor:
    for layer in layers:
        features = layer(features)
    return features


def _modules(layers: list[Layer]) -> list[nn.Module]:
    """All modules of the layers, in order of execution."""
    return [
        module for layer in layers if isinstance(layer, nn.Module) for module in layer.modules()
    ]
