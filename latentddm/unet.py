"""The generator: a UNet that turns (x_t, t, xi) into a draw of x_0.

A diffusers model: `save_pretrained`, `from_pretrained`, safetensors. The noise xi is concatenated
to x_t on channels, as in the paper, and the m particles are folded into the batch.
"""

from __future__ import annotations

import math

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional

from latentddm.attention import attention
from latentddm.process import FlowSchedule, Prediction, to_x0

TIME_FREQUENCIES = 64


class UNet(ModelMixin, ConfigMixin):
    """Draws x_0 ~ p(x_0 | x_t) for xi ~ N(0, I); with xi ignored, a mean denoiser."""

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 4,
        channels: int = 64,  # width of the first level
        multipliers: tuple[int, ...] = (1, 2, 2),  # width of each level, in `channels`
        blocks: int = 2,  # residual blocks at each level, on either path
        attention_levels: tuple[int, ...] = (1, 2),  # levels whose blocks attend, 0 the finest
        head_channels: int = 32,
        dropout: float = 0.0,
        prediction: Prediction = "v",
    ) -> None:
        super().__init__()
        embedding = 4 * channels
        widths = [channels * multiplier for multiplier in multipliers]
        last = len(widths) - 1

        def block(width_in: int, level: int) -> Block:
            heads = widths[level] // head_channels if level in attention_levels else 0
            return Block(width_in, widths[level], embedding, heads, dropout)

        self.time_embedding = TimeEmbedding(embedding)
        self.first = nn.Conv2d(2 * latent_channels, channels, 3, padding=1)  # [x_t, xi]
        self.down = nn.ModuleList()
        skips, width = [channels], channels
        for level in range(len(widths)):
            for _ in range(blocks):
                self.down.append(block(width, level))
                width = widths[level]
                skips.append(width)
            if level < last:
                self.down.append(nn.Conv2d(width, width, 3, stride=2, padding=1))
                skips.append(width)
        self.middle = nn.ModuleList([block(width, last), block(width, last)])
        self.up = nn.ModuleList()
        for level in reversed(range(len(widths))):
            for _ in range(blocks + 1):
                self.up.append(block(width + skips.pop(), level))
                width = widths[level]
            if level > 0:
                self.up.append(Upsample(width, widths[level - 1]))
                width = widths[level - 1]
        self.last = nn.Sequential(
            group_norm(width), nn.SiLU(), nn.Conv2d(width, latent_channels, 3, padding=1)
        )

    def forward(self, x_t: Tensor, t: Tensor, xi: Tensor) -> Tensor:
        """Draws of x_0 for x_t [B, C, H, W] at t [B]; H, W divisible by 2^(levels - 1).

        xi: [B, C, H, W] for one draw of each x_t, [B, m, C, H, W] for m; the result has its shape.
        """
        if xi.ndim == x_t.ndim:
            return self.forward(x_t, t, xi[:, None])[:, 0]
        m = xi.shape[1]
        # The particles split off here, at the input: [B, ...] -> [B m, ...].
        x_t, t = x_t.repeat_interleave(m, dim=0), t.repeat_interleave(m, dim=0)
        output = self._predict(torch.cat([x_t, xi.flatten(0, 1)], dim=1), t)
        x0 = to_x0(output.to(x_t.dtype), x_t, t, self.config.prediction, FlowSchedule())
        return x0.unflatten(0, (-1, m))

    def _predict(self, x: Tensor, t: Tensor) -> Tensor:
        embedding = self.time_embedding(t)
        x = self.first(x)
        skips = [x]
        for layer in self.down:
            x = layer(x, embedding) if isinstance(layer, Block) else layer(x)
            skips.append(x)
        for layer in self.middle:
            x = layer(x, embedding)
        for layer in self.up:
            x = (
                layer(torch.cat([x, skips.pop()], 1), embedding)
                if isinstance(layer, Block)
                else layer(x)
            )
        return self.last(x)


class Block(nn.Module):
    """A residual block whose second half is scaled and shifted by time; then attention, if any."""

    def __init__(
        self, width_in: int, width: int, embedding: int, heads: int, dropout: float
    ) -> None:
        super().__init__()
        self.enter = nn.Sequential(
            group_norm(width_in), nn.SiLU(), nn.Conv2d(width_in, width, 3, padding=1)
        )
        self.modulate = nn.Linear(embedding, 2 * width)
        self.norm = group_norm(width)
        last = nn.Conv2d(width, width, 3, padding=1)
        self.leave = nn.Sequential(nn.SiLU(), nn.Dropout(dropout), last)
        self.shortcut = nn.Conv2d(width_in, width, 1) if width_in != width else nn.Identity()
        self.attention = SelfAttention(width, heads) if heads else None
        for parameter in last.parameters():  # the block starts as its shortcut
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.modulate(embedding)[:, :, None, None].chunk(2, dim=1)
        residual = self.leave(self.norm(self.enter(x)) * (1 + scale) + shift)
        x = self.shortcut(x) + residual
        return self.attention(x) if self.attention is not None else x


class SelfAttention(nn.Module):
    """Residual self-attention over the spatial positions."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = group_norm(width)
        self.enter = nn.Linear(width, 3 * width)
        self.leave = nn.Linear(width, width)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # [B, H W, width]
        query, key, value = self.enter(tokens).unflatten(2, (3, self.heads, -1)).unbind(2)
        attended = self.leave(attention(query, key, value).flatten(2))
        return x + attended.transpose(1, 2).reshape_as(x)


class Upsample(nn.Module):
    """Nearest-neighbour doubling, then a convolution."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(width_in, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.convolution(functional.interpolate(x, scale_factor=2.0, mode="nearest"))


class TimeEmbedding(nn.Module):
    """Sines and cosines of t at geometric frequencies, through a perceptron. [B] -> [B, width]."""

    frequencies: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        frequencies = torch.exp(torch.linspace(0, math.log(1000.0), TIME_FREQUENCIES))
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.perceptron = nn.Sequential(
            nn.Linear(2 * TIME_FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )

    def forward(self, t: Tensor) -> Tensor:
        phases = t[:, None] * self.frequencies  # [B, frequencies]
        return self.perceptron(torch.cat([phases.sin(), phases.cos()], dim=1))


def group_norm(width: int) -> nn.GroupNorm:
    """Group normalisation with groups of at least 8 channels, at most 32 groups."""
    groups = min(32, max(1, width // 8))
    while width % groups:
        groups -= 1
    return nn.GroupNorm(groups, width, eps=1e-5)
