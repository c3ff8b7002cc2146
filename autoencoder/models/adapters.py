"""Adapters of the network classes of diffusers, and their registry: one class and one line each.

A network whose encode and decode return latents and images needs neither `_encode` nor `_decode`;
`decoder_layers` is needed for tiled decoding only.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderTiny, VQModel
from torch import nn

from autoencoder.models.base import Autoencoder, Layer
from latentddm.engine.errors import UserError


class KLAutoencoder(Autoencoder):
    """AutoencoderKL: the VAEs of Stable Diffusion and FLUX, and those trained here."""

    def _encode(self, images: torch.Tensor) -> torch.Tensor:
        return self._encode_moments(images)[0]

    def _encode_moments(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        posterior = self.network.encode(images).latent_dist
        return posterior.mean, posterior.logvar

    def decoder_layers(self) -> list[Layer]:
        # FLUX has no post_quant_conv.
        first = [self.network.post_quant_conv] if self.network.post_quant_conv is not None else []
        return [self._in_dtype, *first, *_convolutional_layers(self.network.decoder)]

    def _in_dtype(self, latents: torch.Tensor) -> torch.Tensor:
        return latents.to(self.dtype)


class VQAutoencoder(Autoencoder):
    """VQModel: raw latents are the encoder's output; decoding begins with the nearest codes."""

    @staticmethod
    def latent_channels_of(config: Any) -> int:
        return config.vq_embed_dim or config.latent_channels  # the width of a code

    def _decode(self, latents: torch.Tensor) -> torch.Tensor:
        codes = self._nearest_codes(latents)
        return self.network.decode(codes, force_not_quantize=True, return_dict=False)[0]

    def decoder_layers(self) -> list[Layer]:
        layers = _convolutional_layers(self.network.decoder)
        return [self._nearest_codes, self.network.post_quant_conv, *layers]

    def _nearest_codes(self, latents: torch.Tensor) -> torch.Tensor:
        # In float32 for any dtype of the network: rounded distances can select other codes.
        codebook = self.network.quantize.embedding.weight.float()  # [K,C]
        vectors = latents.permute(0, 2, 3, 1)  # [B,h,w,C]
        nearest = torch.cdist(vectors.flatten(0, 2), codebook).argmin(dim=1)
        return codebook[nearest].view(vectors.shape).permute(0, 3, 1, 2).to(self.dtype)


class TinyAutoencoder(Autoencoder):
    """AutoencoderTiny: the TAESD family."""

    @staticmethod
    def factor_of(config: Any) -> int:
        return 2 ** (len(config.encoder_block_out_channels) - 1)

    def decoder_layers(self) -> list[Layer]:
        return [self._bounded, *self.network.decoder.layers, _unit_to_signed]

    def _bounded(self, latents: torch.Tensor) -> torch.Tensor:
        return torch.tanh(latents.to(self.dtype) / 3) * 3


class DCAutoencoder(Autoencoder):
    """AutoencoderDC: deep compression with factors 32 and 64, linear attention in early stages."""

    @staticmethod
    def factor_of(config: Any) -> int:
        return 2 ** (len(config.encoder_block_out_channels) - 1)

    def decoder_layers(self) -> list[Layer]:
        return [self._first, *reversed(self.network.decoder.up_blocks), self._last]

    def _first(self, latents: torch.Tensor) -> torch.Tensor:
        decoder, latents = self.network.decoder, latents.to(self.dtype)
        features = decoder.conv_in(latents)
        if decoder.in_shortcut:
            features = features + latents.repeat_interleave(decoder.in_shortcut_repeats, dim=1)
        return features

    def _last(self, features: torch.Tensor) -> torch.Tensor:
        decoder = self.network.decoder
        features = decoder.norm_out(features.movedim(1, -1)).movedim(-1, 1)
        return decoder.conv_out(decoder.conv_act(features))


class _WithoutTime(nn.Module):
    """A residual block of diffusers, called without its time embedding."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.block(features, None)


def _convolutional_layers(decoder: Any) -> list[Layer]:
    """The layers of the decoder of AutoencoderKL and VQModel, its upsampling blocks taken apart."""
    layers: list[Layer] = [decoder.conv_in, decoder.mid_block]
    for block in decoder.up_blocks:
        attentions = getattr(block, "attentions", None) or [None] * len(block.resnets)
        for resnet, attention in zip(block.resnets, attentions, strict=True):
            layers.append(_WithoutTime(resnet))
            if attention is not None:
                layers.append(attention)
        layers += block.upsamplers or []
    return [*layers, decoder.conv_norm_out, decoder.conv_act, decoder.conv_out]


def _unit_to_signed(images: torch.Tensor) -> torch.Tensor:
    return images * 2 - 1


ADAPTERS: dict[type[nn.Module], type[Autoencoder]] = {
    AutoencoderKL: KLAutoencoder,
    VQModel: VQAutoencoder,
    AutoencoderTiny: TinyAutoencoder,
    AutoencoderDC: DCAutoencoder,
}


def wrap_network(network: nn.Module, *, reference: str, fingerprint: str) -> Autoencoder:
    """The autoencoder of a diffusers network in memory; `reference` names it in messages."""
    config: Any = network.config
    if config.in_channels != 3 or getattr(config, "out_channels", 3) != 3:
        raise UserError(
            f"The autoencoder {reference} is for images of {config.in_channels} channels; "
            "give one for RGB images (3 channels)."
        )
    if config.get("norm_type", "group") != "group":
        raise UserError(
            f"The autoencoder {reference} has norm_type {config.norm_type}, which is not "
            "supported; give one with group norms."
        )
    adapter = ADAPTERS[type(network)]
    return adapter(
        network,
        reference=reference,
        fingerprint=fingerprint,
        latent_channels=adapter.latent_channels_of(config),
        factor=adapter.factor_of(config),
    )
