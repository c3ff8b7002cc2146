"""The arguments of a call of the pipeline: what they may be, and a generator for each image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

OutputType = Literal["pil", "np", "pt", "latent"]
Generators = torch.Generator | Sequence[torch.Generator] | None
CALLBACK_TENSORS = ("latents", "x0")


def one_generator_each(generator: Generators, count: int) -> list[torch.Generator]:
    """A generator for each of `count` images; ValueError for a list of another length.

    One generator seeds the images in turn: two calls for two images draw those of one for four.
    """
    if isinstance(generator, Sequence):
        if len(generator) != count:
            raise ValueError(f"{len(generator)} generators were given for {count} images.")
        return list(generator)
    device = generator.device if generator is not None else torch.device("cpu")
    seeds = [
        int(torch.randint(2**62, (), generator=generator, device=device)) for _ in range(count)
    ]
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def check_call(
    batch_size: int, images_at_once: int, output_type: str, tensors: Sequence[str]
) -> None:
    if batch_size < 1 or images_at_once < 1:
        raise ValueError("batch_size and images_at_once must be at least 1.")
    if output_type not in ("pil", "np", "pt", "latent"):
        raise ValueError(f"output_type must be pil, np, pt or latent, not {output_type!r}.")
    for name in tensors:
        if name not in CALLBACK_TENSORS:
            raise ValueError(
                f"A callback can get {' and '.join(CALLBACK_TENSORS)}, not {name!r}; correct "
                "callback_on_step_end_tensor_inputs."
            )
