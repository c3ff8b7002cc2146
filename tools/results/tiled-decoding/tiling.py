"""Error of tiled decoding against decoding at once: diffusers' own tiling and `autoencoder.tiling`.

    python tools/results/tiled-decoding/tiling.py [REF ...] [--images SRC] [--size 1024] [--tile N]

REF: AutoencoderKL or AutoencoderTiny, by default the embedded f16 one of portraits. Two images of
`size` pixels: a mosaic of the first images of SRC at their own size, and the first one enlarged.
Prints JSON with the mean and the largest difference in 8-bit levels and the time as a multiple of
decoding at once.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from autoencoder.decode import decode_latents
from autoencoder.images import ImageSource, open_source
from autoencoder.models import Autoencoder, load_autoencoder
from autoencoder.training.network import SHIPPED_WEIGHTS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("references", nargs="*", default=[str(SHIPPED_WEIGHTS / "portraits")])
    parser.add_argument("--images", default="portraits:1024:3")
    parser.add_argument("--image-size", type=int, default=64, help="of portraits in the mosaic")
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--tile", type=int, help="latents a side (default: half of the image)")
    arguments = parser.parse_args()
    source = open_source(arguments.images, size=arguments.image_size)
    rows = []
    for reference in arguments.references:
        autoencoder = load_autoencoder(reference)
        for name, pixels in images(source, arguments.size).items():
            latents = autoencoder.encode(pixels)
            tile = arguments.tile or latents.shape[2] // 2
            row = {"autoencoder": Path(reference).name, "image": name, "tile": tile}
            rows.append(row | compare(autoencoder, latents, tile))
    print(json.dumps(rows, indent=2))


def images(source: ImageSource, size: int) -> dict[str, torch.Tensor]:
    """Pixels uint8 [1,size,size,3] by name."""
    first = source.load(0).image
    count = size // first.width
    tiles = [np.asarray(source.load(index).image) for index in range(count * count)]
    lines = [np.concatenate(tiles[row * count : (row + 1) * count], 1) for row in range(count)]
    enlarged = np.array(first.resize((size, size), Image.Resampling.BICUBIC))
    found = {"mosaic": np.concatenate(lines), "enlarged": enlarged}
    return {name: torch.from_numpy(pixels)[None] for name, pixels in found.items()}


def compare(autoencoder: Autoencoder, latents: torch.Tensor, tile: int) -> dict[str, Any]:
    whole, seconds = timed(lambda: decode_latents(latents, autoencoder))
    ways = {
        "exact": lambda: decode_latents(latents, autoencoder, tile=tile),
        "diffusers": lambda: decode_by_diffusers(autoencoder, latents, tile),
    }
    row: dict[str, Any] = {}
    for name, decode in ways.items():
        pixels, taken = timed(decode)
        difference = (pixels.int() - whole.int()).abs()
        row[name] = {
            "mean": round(float(difference.float().mean()), 4),
            "largest": int(difference.max()),
            "time": round(taken / seconds, 1),
        }
    return row


def decode_by_diffusers(autoencoder: Autoencoder, latents: torch.Tensor, tile: int) -> torch.Tensor:
    """Pixels uint8 by the network's own tiling: tiles with a quarter in common, blended."""
    network = autoencoder.network
    network.tile_latent_min_size, network.tile_overlap_factor = tile, 0.25
    network.tile_sample_min_size = tile * autoencoder.factor
    network.enable_tiling()
    try:
        return autoencoder.decode(latents).cpu()
    finally:
        network.disable_tiling()


def timed(decode: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, float]:
    start = time.monotonic()
    pixels = decode()
    return pixels, time.monotonic() - start


if __name__ == "__main__":
    main()
