"""Random numbers as functions of (seed, purpose, position), without a generator's hidden state.

Therefore a resumed run is bit-equal to an undisturbed one: the random state to restore is one
integer, the number of images seen.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from latentddm.engine.philox import Key, draw, half_words, normal_numbers, uniform_numbers

if TYPE_CHECKING:  # readers of a store use this module without accelerate
    from accelerate import Accelerator


RANDOM_FORMAT = 2
"""Version of the numbers that a training draws: a run goes on with the version it began with.

1: torch's generators, for the whole global batch; 2: `philox`, for each sample.
"""


def derive_seed(seed: int, *purpose: int | str) -> int:
    """A 63-bit seed for one purpose, independent of the seeds of all other purposes."""
    text = "/".join(f"{type(part).__name__}:{part}" for part in (seed, *purpose))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def torch_generator(
    seed: int, *purpose: int | str, device: torch.device | str = "cpu"
) -> torch.Generator:
    """A torch generator on `device` for one purpose."""
    return torch.Generator(device).manual_seed(derive_seed(seed, *purpose))


def numpy_generator(seed: int, *purpose: int | str) -> np.random.Generator:
    """A numpy generator for one purpose."""
    return np.random.default_rng(derive_seed(seed, *purpose))


class BatchDraws:
    """Random numbers for this process's images of one global batch.

    The numbers of an image are a function of (seed, purpose, position of the image in the training)
    and of the calls before, which are the same on all processes: `philox` draws them for these
    images alone.
    """

    def __init__(
        self, seed: int, purpose: str, images: int, share: int, accelerator: Accelerator
    ) -> None:
        """images: seen before this batch; share: the images of this process."""
        self._key = philox_key(seed, purpose)
        self._positions = batch_positions(images, share, accelerator)
        self._blocks = 0  # drawn by the calls before

    def normal(self, *shape: int) -> torch.Tensor:
        """Standard normal numbers [share, *shape], float32 on the device."""
        return self._next(normal_numbers, shape)

    def uniform(self, *shape: int) -> torch.Tensor:
        """Uniform numbers in [0, 1), [share, *shape], float32 on the device."""
        return self._next(uniform_numbers, shape)

    def _next(self, convert: Callable[..., torch.Tensor], shape: tuple[int, ...]) -> torch.Tensor:
        count = math.prod(shape)
        blocks = -(-count // 4)
        drawn = draw(convert, self._key, self._positions, blocks, self._blocks)
        self._blocks += blocks
        return drawn[:, :count].reshape(-1, *shape)


class BatchMasks:
    """Dropout masks for this process's images of one global batch.

    As `BatchDraws`, and without a state: a layer that is evaluated again, as by gradient
    checkpointing, has the same mask.
    """

    def __init__(self, seed: int, images: int, share: int, accelerator: Accelerator) -> None:
        """images: seen before this batch; share: the images of this process."""
        self._key = philox_key(seed, "dropout")
        self._positions = batch_positions(images, share, accelerator)

    def draw(
        self, part: slice, layer: int, shape: Sequence[int], probability: float
    ) -> torch.Tensor:
        """The masks of the images `part` in one layer, float32 [images, *shape].

        0 with the probability, else 1 / (1 - probability); in steps of 2^-16, as one number needs
        half a word.
        """
        count, dropped = math.prod(shape), round(probability * 2**16)
        bits = draw(half_words, self._key, self._positions[part], -(-count // 8), stream=layer)
        kept = bits[:, :count] >= dropped - 2**15
        return kept.float().mul_(2**16 / (2**16 - dropped)).reshape(-1, *shape)


def batch_positions(images: int, share: int, accelerator: Accelerator) -> torch.Tensor:
    """The positions in the training of this process's images of a batch, int64 [share]."""
    first = images + accelerator.process_index * share
    return torch.arange(first, first + share, device=accelerator.device)


def philox_key(seed: int, *purpose: int | str) -> Key:
    """The key of one purpose: the two words of its seed."""
    high, low = divmod(derive_seed(seed, *purpose), 1 << 32)
    return low, high
