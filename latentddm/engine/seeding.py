"""Random numbers as functions of (seed, purpose, position), without a generator's hidden state.

Therefore a resumed run is bit-equal to an undisturbed one: the random state to restore is one
integer, the number of images seen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:  # readers of a store use this module without accelerate
    from accelerate import Accelerator


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
    """Random numbers for the images of one global batch, this process's part of them.

    Each process draws the numbers of the whole batch and takes its part, so that they are the same
    on any number of processes. Calls must have the same order on all processes.
    """

    def __init__(
        self, seed: int, purpose: str, images: int, share: int, accelerator: Accelerator
    ) -> None:
        """images: seen before this batch; share: the images of this process."""
        rank, self._batch_size = accelerator.process_index, share * accelerator.num_processes
        self._own = slice(rank * share, (rank + 1) * share)
        self._generator = torch_generator(seed, purpose, images, device=accelerator.device)

    def normal(self, *shape: int) -> torch.Tensor:
        """Standard normal numbers [share, *shape], on the device."""
        return self._part(torch.randn, shape)

    def uniform(self, *shape: int) -> torch.Tensor:
        """Uniform numbers in [0, 1), [share, *shape], on the device."""
        return self._part(torch.rand, shape)

    def _part(self, draw: Callable[..., torch.Tensor], shape: tuple[int, ...]) -> torch.Tensor:
        generator = self._generator
        batch = draw((self._batch_size, *shape), generator=generator, device=generator.device)
        return batch[self._own]
