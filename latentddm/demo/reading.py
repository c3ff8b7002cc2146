"""The images of the demo in memory: a few of them first, for the plan, then all."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch

from autoencoder.images import ImageSource, Preprocessing, read_pixels, select_at_random
from autoencoder.sources.decoding import UnreadableImage
from latentddm.engine.errors import UserError

FEWEST_IMAGES = 64
SAMPLE_IMAGES = 32  # "a few dozen": for the PSNR and the speeds


@dataclass(frozen=True)
class Sample:
    """Some images of a source, uint8 [N, S, S, 3], and the seconds for reading each."""

    pixels: torch.Tensor
    seconds: float


def read_images(
    source: ImageSource, limit: int, preprocessing: Preprocessing, workers: int
) -> tuple[np.ndarray, list[UnreadableImage]]:
    """Pixels of a random part of the source, [N, S, S, 3]; UserError if they are too few."""
    chosen = select_at_random(source, limit, seed=0)
    pixels, unreadable = read_pixels(chosen, preprocessing, workers=workers)
    require_enough(source, len(pixels), len(unreadable))
    return pixels, unreadable


def read_sample(source: ImageSource, preprocessing: Preprocessing, workers: int) -> Sample:
    """A random sample of the source; UserError if the source has too few images for a demo."""
    small = len(source) < 2 * FEWEST_IMAGES  # then the readable ones are counted
    chosen = select_at_random(source, None if small else SAMPLE_IMAGES, seed=1)
    started = time.monotonic()
    pixels, unreadable = read_pixels(chosen, preprocessing, workers=workers)
    seconds = (time.monotonic() - started) / len(chosen)
    if small:
        require_enough(source, len(pixels), len(unreadable))
    if not len(pixels):
        raise UserError(
            f"{source.name} holds no readable image among {len(chosen)} of its {len(source):,} "
            f"(the first: {unreadable[0].key}, {unreadable[0].reason}); give other images."
        )
    return Sample(torch.from_numpy(pixels[:SAMPLE_IMAGES]), seconds)


def require_enough(source: ImageSource, readable: int, unreadable: int) -> None:
    """UserError for fewer readable images than a demo needs."""
    if readable < FEWEST_IMAGES:
        raise UserError(
            f"{source.name} holds {readable} readable images ({unreadable} unreadable); the demo "
            f"needs at least {FEWEST_IMAGES}."
        )
