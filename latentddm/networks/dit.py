"""A diffusion transformer on patches of the latents, whose draws split off before its last blocks.

Peebles and Xie, "Scalable Diffusion Models with Transformers", arXiv 2212.09748 (adaLN-zero), with
the deferred expansion and the gated noise of iDDM (arXiv 2609.37147). Shapes: R rows, B before the
draws split off and B m afterwards; N tokens, one for each patch; D numbers in a patch, C p^2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from latentddm.networks.config import NetworkConfig
from latentddm.networks.dropout import SharedDropout
from latentddm.networks.layers import (
    TimeEmbedding,
    TokenAttention,
    TokenNoise,
    add_rows,
    repeat_rows,
    with_global_noise,
)
from latentddm.networks.model import NetworkModel


@dataclass(frozen=True, kw_only=True)
class DiTConfig(NetworkConfig):
    """The settings of a DiT.

    draw_blocks: how many of the last blocks run once for each draw, with xi; those before run once
    for each x_t. positions: of the tokens; learnt ones start as the sinusoidal ones and are
    interpolated for latents of another size than `position_grid` patches.
    """

    kind: Literal["dit"] = "dit"
    width: int = 384
    blocks: int = 12
    draw_blocks: int | None = None  # None: all of them
    patch_size: int = 2  # edge of the patch of latents that is one token
    head_channels: int = 64
    mlp_ratio: float = 4.0  # width of the perceptron of a block, in `width`
    positions: Literal["sinusoidal", "learnt"] = "sinusoidal"
    position_grid: int = 16  # patches along an edge of the grid of learnt positions
    global_noise: bool = False  # xi enters through adaLN as well, averaged over the patches

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("width", "head_channels", "blocks", "patch_size", "position_grid"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.width % self.head_channels or self.width % 4:
            raise ValueError(
                f"width must be a multiple of head_channels ({self.head_channels}) and of 4, "
                f"not {self.width}"
            )
        if not 1 <= self.blocks_per_draw <= self.blocks:
            raise ValueError(
                f"draw_blocks must lie in 1 ... blocks ({self.blocks}), not {self.draw_blocks}"
            )

    @property
    def blocks_per_draw(self) -> int:
        """How many blocks run once for each draw."""
        return self.blocks if self.draw_blocks is None else self.draw_blocks


class Tokens(NamedTuple):
    """The trunk's result for each x_t."""

    x: Tensor  # [B, N, width]
    grid: tuple[int, int]  # patches along the height and the width, N in all


class DiT(NetworkModel[DiTConfig, Tokens]):
    """Transformer blocks on patches; settings: `DiTConfig`. `memory_format` is without effect."""

    Config = DiTConfig
    _no_split_modules: ClassVar[tuple[str, ...]] = ("TransformerBlock",)

    def build(self, config: DiTConfig, latent_channels: int) -> None:
        numbers = latent_channels * config.patch_size**2
        self.time_embedding = TimeEmbedding(
            config.width, config.classes, config.times, config.time_frequency
        )
        self.input = nn.Linear(self.input_channels * config.patch_size**2, config.width)
        self.positions = Positions(
            config.width, config.position_grid if config.positions == "learnt" else 0
        )
        shared = config.blocks - config.blocks_per_draw
        blocks = [
            TransformerBlock(config, numbers if index >= shared else 0)
            for index in range(config.blocks)
        ]
        self.trunk = nn.ModuleList(blocks[:shared])
        self.draw_parts = nn.ModuleList(blocks[shared:])
        self.global_noise = TokenNoise(config.width, numbers) if config.global_noise else None
        self.last = TokenOutput(config.width, numbers)

    def run_trunk(self, x_t: Tensor, embedding: Tensor) -> Tokens:
        patches = self._patches(x_t)
        height, width = (edge // self.config["patch_size"] for edge in x_t.shape[2:])
        # Under autocast the residual stream is float32, whatever the format of the weights.
        rounded = torch.is_autocast_enabled(x_t.device.type)
        like = x_t.new_empty(0, dtype=torch.float32 if rounded else self.input.weight.dtype)
        tokens = self.input(patches) + self.positions(height, width, like)
        tokens = self.run_parts(self.trunk, tokens, embedding, embedding, None)
        return Tokens(tokens, (height, width))

    def run_draws(self, state: Tokens, embedding: Tensor, xi: Tensor | None) -> Tensor:
        noise = None if xi is None else self._patches(xi)
        condition = embedding
        if self.global_noise is not None and noise is not None:
            condition = with_global_noise(embedding, noise, self.global_noise)
        x = self.run_parts(self.draw_parts, state.x, embedding, condition, noise)
        x = self.last(x, condition).transpose(1, 2).unflatten(2, state.grid)  # [R, D, h, w]
        return functional.pixel_shuffle(x, self.config["patch_size"])

    def noise_layers(self) -> list[nn.Module]:
        return [module for module in self.modules() if isinstance(module, TokenNoise)]

    def check_latents(self, shape: Sequence[int]) -> None:
        super().check_latents(shape)
        patch, (height, width) = self.config["patch_size"], shape[1:]
        if height % patch or width % patch:
            raise ValueError(
                f"latents of {height} x {width} do not divide into patches of patch_size {patch}; "
                "set it to a divisor of both edges"
            )

    def _patches(self, x: Tensor) -> Tensor:
        """[R, C, H, W] -> [R, N, D]."""
        return functional.pixel_unshuffle(x, self.config["patch_size"]).flatten(2).transpose(1, 2)


class TransformerBlock(nn.Module):
    """Self-attention and a perceptron behind adaLN-zero; first xi joins the stream, if it does.

    All gates of adaLN start at zero, so the block starts as the identity. xi does not pass through
    them: it enters the residual stream itself, where its weights have a gradient from the start.
    """

    def __init__(self, config: DiTConfig, noise_numbers: int = 0) -> None:
        super().__init__()
        width, hidden = config.width, round(config.mlp_ratio * config.width)
        # Together the blocks add as much variance as one of them with default weights.
        scale = config.blocks_per_draw**-0.5
        self.noise = TokenNoise(width, noise_numbers, scale) if noise_numbers else None
        self.modulate = zero_linear(width, 6 * width)
        self.attention = TokenAttention(width, width // config.head_channels)
        self.input = nn.Linear(width, hidden)
        self.dropout = SharedDropout(config.dropout)
        self.output = nn.Linear(hidden, width)

    def forward(self, x: Tensor, embedding: Tensor, condition: Tensor, xi: Tensor | None) -> Tensor:
        """x: [R, N, width]; embedding: [B, width]; condition: [B or R, width]; xi: [R, N, D]."""
        if self.noise is not None and xi is not None:
            x = add_rows(x, self.noise(xi, embedding))
        modulation = repeat_rows(self.modulate(condition), len(x))[:, None]
        scale_1, shift_1, gate_1, scale_2, shift_2, gate_2 = modulation.chunk(6, dim=2)
        x = x + gate_1 * self.attention(modulated_norm(x, scale_1, shift_1))
        hidden = functional.gelu(
            self.input(modulated_norm(x, scale_2, shift_2)), approximate="tanh"
        )
        return x + gate_2 * self.output(self.dropout(hidden, len(embedding)))


class TokenOutput(nn.Module):
    """The last layer, to the numbers of a patch. [R, N, width] -> [R, N, D].

    Its weights do not start at zero as in arXiv 2212.09748: all draws would be the same, and xi
    without a gradient.
    """

    def __init__(self, width: int, numbers: int) -> None:
        super().__init__()
        self.modulate = zero_linear(width, 2 * width)
        self.linear = nn.Linear(width, numbers)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        modulation = repeat_rows(self.modulate(condition), len(x))[:, None]
        return self.linear(modulated_norm(x, *modulation.chunk(2, dim=2)))


class Positions(nn.Module):
    """Sinusoidal positions, or with `grid` a table of grid x grid learnt ones. [N, width]."""

    def __init__(self, width: int, grid: int = 0) -> None:
        super().__init__()
        self.width, self.grid = width, grid
        self.table = nn.Parameter(sinusoidal_positions(grid, grid, width)) if grid else None

    def forward(self, height: int, width: int, like: Tensor) -> Tensor:
        """The positions of height x width patches, in the format and on the device of `like`."""
        if self.table is None:
            return sinusoidal_positions(height, width, self.width, like.device).to(like.dtype)
        if (height, width) == (self.grid, self.grid):
            return self.table
        picture = self.table.unflatten(0, (self.grid, self.grid)).permute(2, 0, 1)[None]
        resized = functional.interpolate(picture, (height, width), mode="bilinear")
        return resized[0].flatten(1).T


def sinusoidal_positions(
    height: int, width: int, channels: int, device: torch.device | None = None
) -> Tensor:
    """Sines and cosines of row and column, [height * width, channels], float32.

    sin(p / 10000^(4 k / channels)) and the cosines, k < channels / 4 (arXiv 1706.03762, section
    3.5, for each of the two coordinates); channels must be divisible by 4.
    """
    quarter = channels // 4
    frequencies = 10_000.0 ** (-torch.arange(quarter, device=device) / quarter)
    rows = torch.arange(height, device=device)[:, None] * frequencies  # [height, quarter]
    columns = torch.arange(width, device=device)[:, None] * frequencies
    by_row = torch.cat([rows.sin(), rows.cos()], dim=1)[:, None].expand(-1, width, -1)
    by_column = torch.cat([columns.sin(), columns.cos()], dim=1).expand(height, -1, -1)
    return torch.cat([by_row, by_column], dim=2).flatten(0, 1)


def modulated_norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Layer normalisation of tokens [R, N, width], then (1 + scale) and shift, [R, 1, width]."""
    normed = functional.layer_norm(x, x.shape[-1:])
    return normed * (1 + scale) + shift


def zero_linear(width_in: int, width: int) -> nn.Linear:
    """A linear layer that starts at zero."""
    layer = nn.Linear(width_in, width)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
