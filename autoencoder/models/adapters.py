"""The network classes of diffusers that are known here, and how each encodes and decodes."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderTiny, VQModel
from diffusers.models.attention_processor import Attention, SanaMultiscaleLinearAttention
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import nn

from autoencoder.models.base import Autoencoder
from latentddm.engine.errors import UserError


class _ConvolutionalDecoder(Autoencoder):
    """The decoder that AutoencoderKL and VQModel share."""

    @property
    def detail_norms(self) -> list[nn.GroupNorm]:
        modules = (*self._layers[self._split :], self.network.decoder.conv_norm_out)
        return [
            part
            for module in modules
            for part in module.modules()
            if isinstance(part, nn.GroupNorm)
        ]

    def _decode_context(self, latents: torch.Tensor) -> torch.Tensor:
        features = self.network.decoder.conv_in(latents)
        return _through(self._layers[: self._split], features)

    def _decode_detail(self, features: torch.Tensor) -> torch.Tensor:
        decoder = self.network.decoder
        features = _through(self._layers[self._split :], features)
        return decoder.conv_out(decoder.conv_act(decoder.conv_norm_out(features)))

    @property
    def _layers(self) -> list[nn.Module]:
        """The decoder's blocks in order, taken apart to where the picture grows."""
        layers: list[nn.Module] = [self.network.decoder.mid_block]
        for block in self.network.decoder.up_blocks:
            attentions = getattr(block, "attentions", None) or [None] * len(block.resnets)
            for resnet, attention in zip(block.resnets, attentions, strict=True):
                layers += [resnet] if attention is None else [resnet, attention]
            layers += block.upsamplers or []
        return layers

    @property
    def _split(self) -> int:
        """Layers before it see the whole picture: all with attention, and all before it grows."""
        first_growth = next(
            (number for number, layer in enumerate(self._layers) if isinstance(layer, Upsample2D)),
            0,
        )
        return max(first_growth, _last_with(Attention, self._layers))


class KLAutoencoder(_ConvolutionalDecoder):
    """AutoencoderKL: the VAEs of Stable Diffusion and FLUX, and the ones trained here."""

    def _encode(self, images: torch.Tensor) -> torch.Tensor:
        return self._encode_moments(images)[0]

    def _encode_moments(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        posterior = self.network.encode(images).latent_dist
        return posterior.mean, posterior.logvar

    def _decode_context(self, latents: torch.Tensor) -> torch.Tensor:
        latents = latents.to(self.dtype)
        if self.network.post_quant_conv is not None:  # FLUX's has none
            latents = self.network.post_quant_conv(latents)
        return super()._decode_context(latents)


class VQAutoencoder(_ConvolutionalDecoder):
    """VQModel: raw latents are the encoder's output; decoding first snaps them to the codebook."""

    def _decode_context(self, latents: torch.Tensor) -> torch.Tensor:
        codes = self._nearest_codes(latents).to(self.dtype)
        return super()._decode_context(self.network.post_quant_conv(codes))

    def _nearest_codes(self, latents: torch.Tensor) -> torch.Tensor:
        # In float32 whatever the network's dtype: rounded distances would pick other codes.
        codebook = self.network.quantize.embedding.weight.float()  # [K,C]
        vectors = latents.permute(0, 2, 3, 1)  # [B,h,w,C]
        nearest = torch.cdist(vectors.flatten(0, 2), codebook).argmin(dim=1)
        return codebook[nearest].view(vectors.shape).permute(0, 3, 1, 2)


class TinyAutoencoder(Autoencoder):
    """AutoencoderTiny and the TAESD family, whose group norms lie before the first upsampling."""

    def _decode_context(self, latents: torch.Tensor) -> torch.Tensor:
        bounded = torch.tanh(latents.to(self.dtype) / 3) * 3
        return self.network.decoder.layers[: self._split](bounded)

    def _decode_detail(self, features: torch.Tensor) -> torch.Tensor:
        # The network's own range is [0,1].
        return self.network.decoder.layers[self._split :](features) * 2 - 1

    @property
    def _split(self) -> int:
        layers = self.network.decoder.layers
        return next(i for i, layer in enumerate(layers) if isinstance(layer, nn.Upsample))


class DCAutoencoder(Autoencoder):
    """AutoencoderDC: deep compression, factors 32 and 64; linear attention in its early stages."""

    def _decode_context(self, latents: torch.Tensor) -> torch.Tensor:
        decoder, latents = self.network.decoder, latents.to(self.dtype)
        features = decoder.conv_in(latents)
        if decoder.in_shortcut:
            features = features + latents.repeat_interleave(decoder.in_shortcut_repeats, dim=1)
        for stage in self._stages[: self._split]:
            features = stage(features)
        return features

    def _decode_detail(self, features: torch.Tensor) -> torch.Tensor:
        decoder = self.network.decoder
        for stage in self._stages[self._split :]:
            features = stage(features)
        features = decoder.norm_out(features.movedim(1, -1)).movedim(-1, 1)
        return decoder.conv_out(decoder.conv_act(features))

    @property
    def _stages(self) -> list[nn.Module]:
        return list(reversed(self.network.decoder.up_blocks))

    @property
    def _split(self) -> int:
        return _last_with(SanaMultiscaleLinearAttention, self._stages)


def _through(layers: list[nn.Module], features: torch.Tensor) -> torch.Tensor:
    for layer in layers:
        # These residual blocks are made for diffusion and ask for a time, which decoders lack.
        features = layer(features, None) if isinstance(layer, ResnetBlock2D) else layer(features)
    return features


def _last_with(kind: type[nn.Module], layers: list[nn.Module]) -> int:
    """The number of layers up to the last one with a module of that kind in it."""
    found = (
        number
        for number, layer in enumerate(layers, start=1)
        if any(isinstance(module, kind) for module in layer.modules())
    )
    return max(found, default=0)


ADAPTERS: dict[type[nn.Module], type[Autoencoder]] = {
    AutoencoderKL: KLAutoencoder,
    VQModel: VQAutoencoder,
    AutoencoderTiny: TinyAutoencoder,
    AutoencoderDC: DCAutoencoder,
}
NETWORK_CLASSES: dict[str, Any] = {network.__name__: network for network in ADAPTERS}


def wrap_network(network: nn.Module, *, reference: str, fingerprint: str) -> Autoencoder:
    """The adapter for a diffusers network in memory; `reference` names it in messages."""
    config: Any = network.config
    if config.in_channels != 3 or getattr(config, "out_channels", 3) != 3:
        raise UserError(
            f"The autoencoder {reference} is for images of {config.in_channels} channels; "
            "one for RGB images (3 channels) is needed."
        )
    if config.get("norm_type", "group") != "group":
        raise UserError(
            f"The autoencoder {reference} has norm_type {config.norm_type}; "
            "use one with group norms, others are not known here."
        )
    return ADAPTERS[type(network)](
        network,
        reference=reference,
        fingerprint=fingerprint,
        latent_channels=_latent_channels(network),
        factor=_factor(config),
    )


def _latent_channels(network: nn.Module) -> int:
    config: Any = network.config
    if isinstance(network, VQModel):  # its latents leave after quant_conv, as wide as a code
        return config.vq_embed_dim or config.latent_channels
    return config.latent_channels


def _factor(config: Any) -> int:
    """Pixels per latent along one side: every stage of the encoder but one halves the picture."""
    stages = config.get("encoder_block_out_channels") or config.block_out_channels
    return 2 ** (len(stages) - 1)
