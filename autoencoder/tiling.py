"""Decoding a large picture tile by tile, in the memory of one tile and one strip of the picture.

The tiles give what decoding at once gives, up to rounding. Three things stand in the way of that:
layers that look everywhere (attention), which run before the picture is cut; group norms after the
cut, which are given the statistics of the whole picture (picture_norms.py); and the padding at a
tile's sides, which the overlap of tiles hides: within it, one fades into the other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch

from autoencoder.models import Autoencoder
from autoencoder.models.base import round_pixels
from autoencoder.tiled_group_norm import whole_picture_norms
from latentddm.engine.errors import UserError

OVERLAP = 16
"""The cells that neighbouring tiles share, at least. A cell is one position of the features."""
FADE = 4
"""The cells over which they fade, in the middle of the overlap; the rest of it is cut off."""
SMALLEST_TILE = 2 * OVERLAP


@dataclass(frozen=True)
class Span:
    """One tile along one axis: cells start to stop are decoded, own_start to own_stop are its own.

    Every cell is some tile's own, once.
    """

    start: int
    stop: int
    own_start: int
    own_stop: int


def decode_tiled(latents: torch.Tensor, autoencoder: Autoencoder, tile: int) -> torch.Tensor:
    """Raw latents [B,C,h,w] -> pixels uint8 [B,h*f,w*f,3] on the CPU, from tiles of `tile` latents.

    Tiles are decoded one after the other, each for all B pictures. UserError for tiles that
    are too small.
    """
    features = autoencoder.decode_context(latents)
    cells = features.shape[2] // latents.shape[2]
    if tile * cells < SMALLEST_TILE:
        raise UserError(
            f"Tiles of {tile} latents are too small for the autoencoder {autoencoder.reference}; "
            f"use at least {math.ceil(SMALLEST_TILE / cells)}."
        )
    rows, columns = (spans(length, tile * cells) for length in features.shape[2:])
    with whole_picture_norms(autoencoder, features, rows, columns):
        return _decode_strips(features, autoencoder, rows, columns, autoencoder.factor // cells)


def spans(length: int, tile: int) -> list[Span]:
    """Tiles of one size that cover `length` cells evenly and overlap enough."""
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

    Those of all tiles at one pixel sum to 1. scale: pixels per cell.
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
    features: torch.Tensor,
    autoencoder: Autoencoder,
    rows: list[Span],
    columns: list[Span],
    scale: int,
) -> torch.Tensor:
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
            decoded = autoencoder.decode_detail(part).mul_(fade_down).mul_(fade_across)
            strip[:, :, column.start * scale : column.stop * scale] += decoded
        # No later tile reaches above the next row's start: those lines are finished.
        next_start = rows[number + 1].start if number + 1 < len(rows) else height
        finished = (next_start - row.start) * scale
        pixels[:, row.start * scale : next_start * scale] = round_pixels(strip[:, :finished]).cpu()
        unfinished = strip[:, finished:].clone()
        strip.zero_()[:, : unfinished.shape[1]] = unfinished
    return pixels
