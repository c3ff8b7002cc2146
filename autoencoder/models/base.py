"""The interface of all autoencoders, and the conversion between pixels and a network's range."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import nn

from latentddm.engine.errors import JobError, UserError

Layer = Callable[[torch.Tensor], torch.Tensor]


class Autoencoder(nn.Module):
    """A frozen autoencoder: pixels uint8 [B,H,W,3] <-> raw latents float32 [B,C,H/f,W/f].

    Weights are in `dtype` on `device`; pixels are uint8 and latents float32 for any of these. Raw
    latents are the output of the network's encoder, with no scale or shift. network: a module with
    the encode and decode of diffusers. Subclasses (adapters.py) are for network classes with other
    outputs, another pixel range, or tiled decoding.
    """

    pixel_range: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    """The network's values of black and of white."""

    def __init__(
        self,
        network: nn.Module,
        *,
        reference: str,
        fingerprint: str,
        latent_channels: int,
        factor: int,
    ) -> None:
        super().__init__()
        self.network: Any = network.requires_grad_(False).eval()
        self.reference = reference
        self.fingerprint = fingerprint
        self.latent_channels = latent_channels
        self.factor = factor

    @staticmethod
    def latent_channels_of(config: Any) -> int:
        """The channels of raw latents of a network with this configuration."""
        return config.latent_channels

    @staticmethod
    def factor_of(config: Any) -> int:
        """Pixels per latent along one side: all stages of the encoder but one halve the image."""
        return 2 ** (len(config.block_out_channels) - 1)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.network.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    @torch.no_grad()
    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels uint8 [B,H,W,3] -> raw latents float32 [B,C,H/f,W/f]; deterministic.

        The mean of the posterior, if the encoder has one.
        """
        return self._finite(self._encode(self._to_network(pixels)).float(), "Encoding")

    @torch.no_grad()
    def encode_moments(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Pixels uint8 [B,H,W,3] -> mean and log variance of the posterior, float32 [B,C,h,w] each.

        UserError for an autoencoder without a posterior.
        """
        mean, log_variance = self._encode_moments(self._to_network(pixels))
        return self._finite(mean.float(), "Encoding"), log_variance.float()

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Raw latents [B,C,h,w] -> pixels uint8 [B,h*f,w*f,3]."""
        return round_pixels(self.decode_unrounded(latents))

    @torch.no_grad()
    def decode_unrounded(self, latents: torch.Tensor) -> torch.Tensor:
        """Raw latents [B,C,h,w] -> float32 [B,h*f,w*f,3], 0 black and 1 white, not clamped."""
        return self.to_unit(self._decode(self.checked_latents(latents)))

    def reconstruct(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels uint8 [B,H,W,3] -> latents -> pixels uint8 [B,H,W,3]."""
        return self.decode(self.encode(pixels))

    def decoder_layers(self) -> list[Layer]:
        """The decoder as a chain of layers, for tiled decoding; empty if none is defined.

        Chained, they map float32 raw latents on `device` to images [B,3,H,W] in the pixel range.
        """
        return []

    def checked_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Raw latents [B,C,h,w] as float32 on `device`; UserError if they do not fit."""
        if (
            not latents.is_floating_point()
            or latents.ndim != 4
            or latents.shape[1] != self.latent_channels
        ):
            raise UserError(
                f"The autoencoder {self.reference} decodes float latents "
                f"[B,{self.latent_channels},h,w], not {latents.dtype} {list(latents.shape)}; "
                "give the autoencoder of these latents."
            )
        latents = latents.to(self.device, torch.float32, non_blocking=True)
        if not torch.isfinite(latents).all():
            raise UserError("The latents to decode hold NaN or infinite values; make them again.")
        return latents

    def to_unit(self, images: torch.Tensor) -> torch.Tensor:
        """Images [B,3,H,W] in the pixel range -> float32 [B,H,W,3], 0 black and 1 white."""
        low, high = self.pixel_range
        unit = images.float().sub_(low).div_(high - low)
        return self._finite(unit, "Decoding").permute(0, 2, 3, 1)

    def _encode(self, images: torch.Tensor) -> torch.Tensor:
        """Images [B,3,H,W] in the pixel range -> raw latents."""
        return self.network.encode(images, return_dict=False)[0]

    def _encode_moments(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Images [B,3,H,W] in the pixel range -> mean and log variance of the posterior."""
        raise UserError(
            f"The autoencoder {self.reference} ({type(self.network).__name__}) has no posterior; "
            "encode without --moments."
        )

    def _decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Float32 raw latents on `device` -> images [B,3,H,W] in the pixel range."""
        return self.network.decode(latents.to(self.dtype), return_dict=False)[0]

    def _to_network(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels uint8 [B,H,W,3] -> [B,3,H,W] in the pixel range, in `dtype` on `device`."""
        if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[-1] != 3:
            raise UserError(
                f"Pixels are uint8 [B,H,W,3], not {pixels.dtype} {list(pixels.shape)}; convert "
                "them first."
            )
        height, width = pixels.shape[1:3]
        if height % self.factor or width % self.factor or not height or not width:
            raise UserError(
                f"Images of {width}x{height} pixels do not fit the autoencoder {self.reference}; "
                f"choose multiples of {self.factor} for width and height."
            )
        low, high = self.pixel_range
        # The memory of a permuted [B,H,W,3] tensor is in channels_last order already.
        images = pixels.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
        return (images.float() * ((high - low) / 255) + low).to(self.dtype)

    def _finite(self, values: torch.Tensor, stage: str) -> torch.Tensor:
        if not torch.isfinite(values).all():
            raise JobError(
                f"{stage} with the autoencoder {self.reference} in {self.dtype} gave NaN or "
                "infinite values; use float32 or bfloat16."
            )
        return values


def latent_edge(autoencoder: Autoencoder, size: int) -> int:
    """The edge of the latents of images of `size` pixels; UserError unless its factor fits."""
    edge, rest = divmod(size, autoencoder.factor)
    if rest or not edge:
        nearest = max(round(size / autoencoder.factor), 1) * autoencoder.factor
        raise UserError(
            f"size is {size}, not a multiple of {autoencoder.factor}, the factor of the "
            f"autoencoder {autoencoder.reference}; choose {nearest}, or give another autoencoder."
        )
    return edge


def round_pixels(unrounded: torch.Tensor) -> torch.Tensor:
    """Float values, 0 black and 1 white -> uint8, clamped and rounded to the nearest level."""
    return (unrounded * 255).round_().clamp_(0, 255).to(torch.uint8)
