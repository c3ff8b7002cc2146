"""Every random draw is a function of (seed, purpose, position); no generator has a hidden state.

That is what makes a resumed run bit-equal to one that was never stopped: the state to restore is
one integer, the number of images seen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:  # a reader of a store draws too, and needs no processes
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
    """The random draws for the images of one global batch; this process's part of them.

    They are drawn for the whole batch and each process takes its part, so that a run sees the same
    draws on any number of processes. Calls must come in the same order on all of them.
    """

    def __init__(
        self, seed: int, purpose: str, images: int, share: int, accelerator: Accelerator
    ) -> None:
        """images: seen before this batch; share: the images of this process."""
        rank, self._everyone = accelerator.process_index, share * accelerator.num_processes
        self._mine = slice(rank * share, (rank + 1) * share)
        self._generator = torch_generator(seed, purpose, images, device=accelerator.device)

    def normal(self, *shape: int) -> torch.Tensor:
        """Standard normal numbers [share, *shape], on the device."""
        return self._part(torch.randn, shape)

    def uniform(self, *shape: int) -> torch.Tensor:
        """Uniform numbers in [0, 1), [share, *shape], on the device."""
        return self._part(torch.rand, shape)

    def _part(self, draw: Callable[..., torch.Tensor], shape: tuple[int, ...]) -> torch.Tensor:
        generator = self._generator
        everyone = draw((self._everyone, *shape), generator=generator, device=generator.device)
        return everyone[self._mine]
