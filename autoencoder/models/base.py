"""The one interface of all autoencoders, and the one place where pixels change their range."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn

from latentddm.engine.errors import JobError, UserError


class Autoencoder(nn.Module):
    """A frozen autoencoder: pixels uint8 [B,H,W,3] <-> raw latents float32 [B,C,H/f,W/f].

    Weights are in `dtype`, on `device`; what goes in and out is uint8 pixels and float32 latents
    whatever the two are. Latents are raw: what the network emits, with no scale or shift.
    `network` has diffusers' encode and decode. Subclasses (adapters.py) are for network classes
    that need more than a call of these, or another range of pixels.
    """

    pixel_range: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    """What the network takes and gives for black and for white."""

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

    @property
    def detail_norms(self) -> list[nn.GroupNorm]:
        """The group norms that `decode_detail` runs through, in order.

        They normalise with the statistics of all that they see, so a tile needs to be told those
        of the whole picture.
        """
        return []

    @property
    def dtype(self) -> torch.dtype:
        return next(self.network.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    @torch.no_grad()
    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels uint8 [B,H,W,3] -> raw latents float32 [B,C,H/f,W/f]; deterministic.

        Of an encoder with a posterior these are the posterior's mean.
        """
        return self._finite(self._encode(self._to_network(pixels)).float(), "Encoding")

    @torch.no_grad()
    def encode_moments(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Pixels uint8 [B,H,W,3] -> the posterior's mean and log variance, each as `encode` gives.

        UserError if this autoencoder has no posterior.
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
        return self.decode_detail(self.decode_context(latents))

    @torch.no_grad()
    def decode_context(self, latents: torch.Tensor) -> torch.Tensor:
        """The first part of decoding: raw latents [B,C,h,w] -> features [B,D,h',w'].

        It has the layers that must see the whole picture, such as attention, and ends where the
        picture is still small.
        """
        return self._decode_context(self._checked_latents(latents))

    @torch.no_grad()
    def decode_detail(self, features: torch.Tensor) -> torch.Tensor:
        """The rest of decoding: features of `decode_context`, or a tile of them, to pixels.

        Returns float32 [B,H,W,3], 0 black and 1 white, not clamped.
        """
        low, high = self.pixel_range
        decoded = self._decode_detail(features).float()
        unit = decoded.sub_(low).div_(high - low)
        return self._finite(unit, "Decoding").permute(0, 2, 3, 1)

    def reconstruct(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels uint8 [B,H,W,3] -> the same pictures through the latents and back."""
        return self.decode(self.encode(pixels))

    def _encode(self, images: torch.Tensor) -> torch.Tensor:
        """Images [B,3,H,W] in the network's pixel range -> raw latents."""
        return self.network.encode(images, return_dict=False)[0]

    def _decode_context(self, latents: torch.Tensor) -> torch.Tensor:
        """Float32 raw latents on the network's device -> features in the network's dtype."""
        raise NotImplementedError

    def _decode_detail(self, features: torch.Tensor) -> torch.Tensor:
        """Features -> images [B,3,H,W] in the network's pixel range."""
        raise NotImplementedError

    def _encode_moments(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        raise UserError(
            f"The autoencoder {self.reference} ({type(self.network).__name__}) has no posterior; "
            "encode its latents without moments."
        )

    def _to_network(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels uint8 [B,H,W,3] -> [B,3,H,W] in the network's range, dtype and device."""
        if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[-1] != 3:
            raise UserError(
                f"Pixels must be uint8 [B,H,W,3], not {pixels.dtype} {list(pixels.shape)}."
            )
        height, width = pixels.shape[1:3]
        if height % self.factor or width % self.factor or not height or not width:
            raise UserError(
                f"Images of {width}x{height} pixels do not fit the autoencoder {self.reference}: "
                f"width and height must be multiples of {self.factor}; choose another size."
            )
        low, high = self.pixel_range
        # A permuted [B,H,W,3] tensor already lies in memory as channels_last wants it.
        images = pixels.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
        return (images.float() * ((high - low) / 255) + low).to(self.dtype)

    def _checked_latents(self, latents: torch.Tensor) -> torch.Tensor:
        if (
            not latents.is_floating_point()
            or latents.ndim != 4
            or latents.shape[1] != self.latent_channels
        ):
            raise UserError(
                f"The autoencoder {self.reference} decodes float latents "
                f"[B,{self.latent_channels},h,w], not {latents.dtype} {list(latents.shape)}; "
                "use the autoencoder that the latents were made with."
            )
        latents = latents.to(self.device, torch.float32, non_blocking=True)
        if not torch.isfinite(latents).all():
            raise UserError("The latents to decode hold NaN or infinite values; make them again.")
        return latents

    def _finite(self, values: torch.Tensor, stage: str) -> torch.Tensor:
        if not torch.isfinite(values).all():
            raise JobError(
                f"{stage} with the autoencoder {self.reference} in {self.dtype} gave NaN or "
                "infinite values; use float32 or bfloat16."
            )
        return values


def round_pixels(unrounded: torch.Tensor) -> torch.Tensor:
    """Float values, 0 black and 1 white -> uint8, clamped and rounded to the nearest."""
    return (unrounded * 255).round_().clamp_(0, 255).to(torch.uint8)
