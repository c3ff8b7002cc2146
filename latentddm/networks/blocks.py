"""The parts of the UNet: the first and last convolution, residual blocks, changes of resolution.

A part maps a `State` to a `State`. Feature maps have B rows until the draws split off, and B m
afterwards, the m draws of one x_t beside each other. Everything that the draws of an x_t share is
computed for B rows once: a convolution of concatenated maps is the sum of their convolutions, so a
block has a convolution for each of its inputs and repeats the sum of the shared ones, not the
inputs. Without xi, the branches that read it are skipped; as they have no bias, xi = 0 is the same.

embedding: of t, [B, width]; condition: the same, or with the global part of xi [B m, width].
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from latentddm.networks.dropout import SharedDropout
from latentddm.networks.layers import (
    Convolution,
    NoiseGate,
    Norm,
    TokenAttention,
    add_rows,
    repeat_rows,
)

Keep = Literal["skips", "features"]  # where a part's result is kept for later, if it is


class State(NamedTuple):
    """The current map of the UNet, and the maps that are kept for later."""

    x: Tensor  # [B or B m, width, h, w]
    skips: tuple[Tensor, ...] = ()  # for the next way up, which takes the last one first
    features: tuple[Tensor, ...] = ()  # of the way up, one map for each level, the coarsest first

    def follow(self, x: Tensor, keep: Keep | None = None) -> State:
        """The state whose current map is x."""
        if keep is None:
            return State(x, self.skips, self.features)
        if keep == "skips":
            return State(x, (*self.skips, x), self.features)
        return State(x, self.skips, (*self.features, x))


class Input(nn.Module):
    """The first convolution, of x_t alone or of x_t and xi side by side, as in the paper.

    A patch of `patch` x `patch` positions becomes one position first.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        *,
        noise_channels: int,
        patch: int,
        pointwise: bool,
        keep: Keep | None,
    ) -> None:
        super().__init__()
        self.patch, self.keep = patch, keep
        self.convolution = Convolution(channels * patch**2, width, pointwise)
        self.noise: nn.Module | None = None
        if noise_channels:
            self.noise = Convolution(noise_channels * patch**2, width, pointwise, bias=False)
            for parameter in self.parameters():  # as in one convolution of twice the channels
                parameter.data *= 0.5**0.5

    def forward(
        self, state: State, embedding: Tensor, condition: Tensor, xi: Tensor | None
    ) -> State:
        x = self.convolution(functional.pixel_unshuffle(state.x, self.patch))
        if self.noise is not None and xi is not None:
            x = add_rows(x, self.noise(functional.pixel_unshuffle(xi, self.patch)))
        return state.follow(x, self.keep)

    def noise_layers(self) -> list[nn.Module]:
        """The layers that read xi alone."""
        return [] if self.noise is None else [self.noise]


class Output(nn.Module):
    """The last convolution, to the channels of the latents; positions become patches again."""

    def __init__(self, width: int, latent_channels: int, *, patch: int, pointwise: bool) -> None:
        super().__init__()
        self.patch = patch
        self.norm = Norm(width, pointwise)
        self.convolution = Convolution(width, latent_channels * patch**2, pointwise)

    def forward(self, x: Tensor) -> Tensor:
        x = self.convolution(functional.silu(self.norm(x)))
        return functional.pixel_shuffle(x, self.patch)


class Block(nn.Module):
    """A residual block whose second half is scaled and shifted by time; then attention, if any.

    It reads the current map; the map that was kept last, if `skip_width`; and xi, if
    `noise_channels`, resized by `noise_stride`.
    """

    def __init__(
        self,
        width_in: int,
        width: int,
        embedding: int,
        *,
        skip_width: int = 0,
        noise_channels: int = 0,
        noise_stride: int = 1,
        heads: int = 0,
        pointwise: bool = False,
        dropout: float = 0.0,
        keep: Keep | None = None,
    ) -> None:
        super().__init__()
        self.keep = keep
        self.input = InputBranch(width_in, width, pointwise, adapt=width_in != width)
        self.input_skip = InputBranch(skip_width, width, pointwise) if skip_width else None
        self.input_noise = (
            NoiseBranch(noise_channels, width, noise_stride, embedding) if noise_channels else None
        )
        self.modulate = nn.Linear(embedding, 2 * width)
        self.norm = Norm(width, pointwise)
        self.dropout = SharedDropout(dropout)
        self.output = Convolution(width, width, pointwise)
        self.attention = SelfAttention(width, heads) if heads else None
        for parameter in self.output.parameters():  # the block starts as its shortcut
            nn.init.zeros_(parameter)

    def forward(
        self, state: State, embedding: Tensor, condition: Tensor, xi: Tensor | None
    ) -> State:
        residual, shortcut = self.input(state.x)
        if self.input_skip is not None:
            from_skip, skip = self.input_skip(state.skips[-1])
            residual, shortcut = add_rows(residual, from_skip), add_rows(shortcut, skip)
            state = State(state.x, state.skips[:-1], state.features)
        if self.input_noise is not None and xi is not None:
            from_noise, noise = self.input_noise(xi, embedding)
            residual, shortcut = add_rows(residual, from_noise), add_rows(shortcut, noise)

        modulation = repeat_rows(self.modulate(condition), len(residual))
        scale, shift = modulation[:, :, None, None].chunk(2, dim=1)
        residual = functional.silu(torch.addcmul(shift, self.norm(residual), 1 + scale))
        x = shortcut + self.output(self.dropout(residual, len(embedding)))
        return state.follow(x if self.attention is None else self.attention(x), self.keep)

    def noise_layers(self) -> list[nn.Module]:
        """The layers that read xi alone."""
        return [] if self.input_noise is None else [self.input_noise]


class InputBranch(nn.Module):
    """The convolutions of one input of a block: for its residual, and for its shortcut."""

    def __init__(self, width_in: int, width: int, pointwise: bool, adapt: bool = True) -> None:
        super().__init__()
        self.norm = Norm(width_in, pointwise)
        self.convolution = Convolution(width_in, width, pointwise)
        self.shortcut = Convolution(width_in, width, pointwise=True) if adapt else nn.Identity()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.convolution(functional.silu(self.norm(x))), self.shortcut(x)


class NoiseBranch(nn.Module):
    """The input of xi to a block: patches of xi, one for each position, behind a `NoiseGate`.

    The weights start small but not at zero, where their gradient would vanish. There is no bias:
    xi = 0 contributes nothing.
    """

    def __init__(self, channels: int, width: int, stride: int, embedding: int) -> None:
        super().__init__()
        self.stride = stride
        numbers = channels * stride**2  # of a patch
        self.gate = NoiseGate(embedding, numbers)
        self.convolution = Convolution(numbers, 2 * width, pointwise=True, bias=False)

    def forward(self, xi: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor]:
        gate = self.gate(embedding, len(xi))[:, :, None, None]
        patches = functional.pixel_unshuffle(xi, self.stride)
        residual, shortcut = self.convolution(gate * patches).chunk(2, dim=1)
        return residual, shortcut


class SelfAttention(TokenAttention):
    """Residual self-attention over the spatial positions."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.norm = Norm(width)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # [B, H W, width]
        return x + super().forward(tokens).transpose(1, 2).reshape_as(x)


class Downsample(nn.Module):
    """A convolution of stride 2."""

    def __init__(self, width: int, keep: Keep | None) -> None:
        super().__init__()
        self.keep = keep
        self.convolution = nn.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(
        self, state: State, embedding: Tensor, condition: Tensor, xi: Tensor | None
    ) -> State:
        return state.follow(self.convolution(state.x), self.keep)


class Upsample(nn.Module):
    """Nearest-neighbour doubling; the block that follows has the convolution."""

    def forward(
        self, state: State, embedding: Tensor, condition: Tensor, xi: Tensor | None
    ) -> State:
        doubled = functional.interpolate(state.x, scale_factor=2.0, mode="nearest")
        return state.follow(doubled)


class Restart(nn.Module):
    """Back to the coarsest feature, for a second way up; the finer ones become the skips."""

    def forward(
        self, state: State, embedding: Tensor, condition: Tensor, xi: Tensor | None
    ) -> State:
        coarsest, *finer = state.features
        return State(coarsest, tuple(reversed(finer)))
