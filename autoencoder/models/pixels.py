"""Pixels as latents: the identity in the place of an autoencoder."""

from __future__ import annotations

import torch
from torch import nn

from autoencoder.models.base import Autoencoder, Layer
from autoencoder.models.fingerprint import fingerprint_of

REFERENCE = "pixels"


class PixelAutoencoder(Autoencoder):
    """Raw latents are the pixels themselves, from -1 (black) to 1 (white), [B,3,H,W].

    A level is 1/127.5; the rounding of float16 in [-1, 1] is below 1/4096. So a store in its
    default format, and model space after it, return every uint8 pixel exactly. Always float32: in
    bfloat16 neighbouring levels would become one.
    """

    _place: torch.Tensor  # empty, on the device

    def __init__(self) -> None:
        super().__init__(
            nn.Identity(),
            reference=REFERENCE,
            fingerprint=fingerprint_of(PixelAutoencoder, {}, {}),
            latent_channels=3,
            factor=1,
        )
        self.register_buffer("_place", torch.empty(0), persistent=False)

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    @property
    def device(self) -> torch.device:
        return self._place.device

    def decoder_layers(self) -> list[Layer]:
        return [self._decode]

    def _encode(self, images: torch.Tensor) -> torch.Tensor:
        return images

    def _decode(self, latents: torch.Tensor) -> torch.Tensor:
        return latents.clone()  # `to_unit` works in place
