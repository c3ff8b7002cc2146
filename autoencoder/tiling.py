"""Decoding a large picture tile by tile, in the memory of one tile and one strip of the picture.

Neighbouring tiles overlap; within the overlap the picture fades from one to the other. Two things
make a tile differ from the same place of an untiled picture: the padding at its sides, which the
overlap hides, and layers that look at the whole picture (group norm, attention), which see the
tile only.
"""

from __future__ import annotations

import math

import torch

from autoencoder.models import Autoencoder
from autoencoder.models.base import round_pixels
from latentddm.engine.errors import RequestError

OVERLAP = 0.25
"""The part of a tile's side that it shares with its neighbour, at least."""
FADE = 0.125
"""The part of a tile's side over which the picture fades; what overlaps beyond it is cut off."""
SMALLEST_TILE = 8


def decode_tiled(latents: torch.Tensor, autoencoder: Autoencoder, tile: int) -> torch.Tensor:
    """Raw latents [B,C,h,w] -> pixels uint8 [B,h*f,w*f,3] on the CPU, from tiles of `tile` latents.

    Tiles are decoded one after the other, each for all B pictures. RequestError for a tile below
    8 latents a side.
    """
    if tile < SMALLEST_TILE:
        raise RequestError(f"A tile must have at least {SMALLEST_TILE} latents a side, not {tile}.")
    factor = autoencoder.factor
    count, _, height, width = latents.shape
    pixels = torch.empty(count, height * factor, width * factor, 3, dtype=torch.uint8)
    tops, lefts = tile_starts(height, tile), tile_starts(width, tile)
    strip = torch.zeros(
        count, min(tile, height) * factor, width * factor, 3, device=autoencoder.device
    )
    for row, top in enumerate(tops):
        fade_down = fade_weights(tops, row, tile, height, factor).to(strip)[:, None, None]
        for column, left in enumerate(lefts):
            fade_across = fade_weights(lefts, column, tile, width, factor).to(strip)[:, None]
            part = latents[:, :, top : top + tile, left : left + tile]
            decoded = autoencoder.decode_unrounded(part)
            place = slice(left * factor, left * factor + decoded.shape[2])
            strip[:, :, place] += decoded * fade_down * fade_across
        # No later tile reaches above the next row's top: those lines are finished.
        finished = ((tops[row + 1] if row + 1 < len(tops) else height) - top) * factor
        pixels[:, top * factor : top * factor + finished] = round_pixels(strip[:, :finished]).cpu()
        strip = strip.roll(-finished, dims=1)
        strip[:, strip.shape[1] - finished :] = 0
    return pixels


def tile_starts(length: int, tile: int) -> list[int]:
    """Where tiles of one size start so that they cover `length` evenly, and overlap enough."""
    if length <= tile:
        return [0]
    overlap = math.ceil(tile * OVERLAP)
    count = math.ceil((length - overlap) / (tile - overlap))
    return [round(step * (length - tile) / (count - 1)) for step in range(count)]


def fade_weights(
    starts: list[int], index: int, tile: int, length: int, factor: int
) -> torch.Tensor:
    """The weight of each pixel of tile `index` along one axis, float32 [min(tile, length) * factor].

    The weights of all tiles at one pixel sum to 1. The fade lies in the middle of an overlap.
    """
    start = starts[index]
    stop = min(start + tile, length)
    position = torch.arange(start * factor, stop * factor, dtype=torch.float64) + 0.5
    weights = torch.ones_like(position)
    half_fade = tile * FADE / 2 * factor
    for neighbour, sign in ((index - 1, 1), (index + 1, -1)):
        if 0 <= neighbour < len(starts):
            middle = (start + starts[neighbour] + tile) / 2 * factor
            ramp = ((position - middle) / half_fade * sign).clamp(-1, 1)
            weights *= 0.5 + 0.5 * torch.sin(ramp * (math.pi / 2))
    return weights.float()
