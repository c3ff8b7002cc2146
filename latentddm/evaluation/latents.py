"""The latent space of an autoencoder as a feature space: no Inception, for small machines."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from latentddm.engine.errors import UserError


class LatentExtractor:
    """Raw latents, averaged over `pool` x `pool` cells and flattened.

    Takes latents [N, C, h, w]; with `encode` (pixels uint8 [N, S, S, 3] -> latents) it takes
    pixels too. shape: (C, h, w) of one latent. fingerprint: the autoencoder's. The dimension is
    C x h/pool x w/pool: a Fréchet distance wants several times as many images.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        fingerprint: str,
        *,
        pool: int = 1,
        encode: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        channels, height, width = shape
        if pool < 1 or height % pool or width % pool:
            raise UserError(
                f"Latents of {height} x {width} cannot be averaged over cells of {pool}; "
                "choose a divisor of both."
            )
        self.name = f"latents-pool{pool}"
        self.hash = fingerprint
        self.resize = "none"
        self.dimension = channels * (height // pool) * (width // pool)
        self._shape, self._pool, self._encode = shape, pool, encode

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Latents [N, C, h, w], or pixels where there is an encoder -> float32 [N, D], CPU."""
        if images.dtype == torch.uint8 and self._encode is not None:
            images = self._encode(images)
        if not images.is_floating_point() or tuple(images.shape[1:]) != self._shape:
            raise UserError(
                f"The latent features need latents {list(self._shape)}, "
                f"not {images.dtype} {list(images.shape[1:])}."
            )
        return F.avg_pool2d(images.float(), self._pool).flatten(1).cpu()
