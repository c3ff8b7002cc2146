"""The parts of the generator: residual blocks that many particles can share, and what lies between.

A part maps a `State` to a `State`. Until the particles split off, feature maps have B rows; after
that they have B m, the m particles of one x_t beside each other. What both need is computed for B
rows once: a convolution of concatenated maps is the sum of their convolutions, so a block gives
each of its inputs a convolution of its own and repeats the sum of the shared ones, not the inputs.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from latentddm.networks.attention import attention
from latentddm.networks.layers import Convolution, Norm, SharedDropout, add_rows, repeat_rows

Keep = Literal["skips", "features"]  # where a part's result is kept for later, if it is


class State(NamedTuple):
    """What flows through the network: the current map, and those that are kept."""

    x: Tensor  # [B or B m, width, h, w]
    skips: tuple[Tensor, ...] = ()  # to be read on the next way up, the last one first
    features: tuple[Tensor, ...] = ()  # of the way up, a map a level, the coarsest first

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
        latent_channels: int,
        width: int,
        *,
        with_noise: bool,
        patch: int,
        pointwise: bool,
        keep: Keep | None,
    ) -> None:
        super().__init__()
        self.with_noise, self.patch, self.keep = with_noise, patch, keep
        channels = 2 * latent_channels if with_noise else latent_channels
        self.convolution = Convolution(channels * patch**2, width, pointwise)

    def forward(self, state: State, embedding: Tensor, xi: Tensor | None) -> State:
        x = state.x
        if self.with_noise:
            assert xi is not None
            repeated = torch.empty_like(xi).copy_(repeat_rows(x, len(xi)))  # in xi's memory format
            x = torch.cat([repeated, xi], dim=1)
        x = functional.pixel_unshuffle(x, self.patch)
        return state.follow(self.convolution(x), self.keep)


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

    def forward(self, state: State, embedding: Tensor, xi: Tensor | None) -> State:
        residual, shortcut = self.input(state.x)
        if self.input_skip is not None:
            from_skip, skip = self.input_skip(state.skips[-1])
            residual, shortcut = add_rows(residual, from_skip), add_rows(shortcut, skip)
            state = State(state.x, state.skips[:-1], state.features)
        if self.input_noise is not None:
            assert xi is not None
            from_noise, noise = self.input_noise(xi, embedding)
            residual, shortcut = add_rows(residual, from_noise), add_rows(shortcut, noise)

        modulation = repeat_rows(self.modulate(embedding), len(residual))
        scale, shift = modulation[:, :, None, None].chunk(2, dim=1)
        residual = functional.silu(torch.addcmul(shift, self.norm(residual), 1 + scale))
        x = shortcut + self.output(self.dropout(residual, len(embedding)))
        return state.follow(x if self.attention is None else self.attention(x), self.keep)


class InputBranch(nn.Module):
    """What a block reads of one map: for its residual, and for its shortcut."""

    def __init__(self, width_in: int, width: int, pointwise: bool, adapt: bool = True) -> None:
        super().__init__()
        self.norm = Norm(width_in, pointwise)
        self.convolution = Convolution(width_in, width, pointwise)
        self.shortcut = Convolution(width_in, width, pointwise=True) if adapt else nn.Identity()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.convolution(functional.silu(self.norm(x))), self.shortcut(x)


class NoiseBranch(nn.Module):
    """What a block reads of xi: numbers behind gates that depend on t (iDDM, arXiv 2609.37147).

    A patch of xi becomes one position, and each of its numbers has a gate of its own: coarse and
    fine detail of x_0 are open at different times. The weights start small but not at zero, where
    their gradient would vanish.
    """

    def __init__(self, channels: int, width: int, stride: int, embedding: int) -> None:
        super().__init__()
        self.stride = stride
        numbers = channels * stride**2  # of a patch
        self.gate = nn.Linear(embedding, numbers)
        nn.init.ones_(self.gate.bias)
        self.convolution = Convolution(numbers, 2 * width, pointwise=True)

    def forward(self, xi: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor]:
        gate = repeat_rows(self.gate(embedding), len(xi))[:, :, None, None]
        patches = functional.pixel_unshuffle(xi, self.stride)
        residual, shortcut = self.convolution(gate * patches).chunk(2, dim=1)
        return residual, shortcut


class SelfAttention(nn.Module):
    """Residual self-attention over the spatial positions."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = Norm(width)
        self.input = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # [B, H W, width]
        query, key, value = self.input(tokens).unflatten(2, (3, self.heads, -1)).unbind(2)
        attended = self.output(attention(query, key, value).flatten(2))
        return x + attended.transpose(1, 2).reshape_as(x)


class Downsample(nn.Module):
    """A convolution of stride 2."""

    def __init__(self, width: int, keep: Keep | None) -> None:
        super().__init__()
        self.keep = keep
        self.convolution = nn.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, state: State, embedding: Tensor, xi: Tensor | None) -> State:
        return state.follow(self.convolution(state.x), self.keep)


class Upsample(nn.Module):
    """Nearest-neighbour doubling; the block that follows has the convolution."""

    def forward(self, state: State, embedding: Tensor, xi: Tensor | None) -> State:
        doubled = functional.interpolate(state.x, scale_factor=2.0, mode="nearest")
        return state.follow(doubled)


class Restart(nn.Module):
    """Go back to the coarsest feature, to go up a second time; the finer ones become the skips."""

    def forward(self, state: State, embedding: Tensor, xi: Tensor | None) -> State:
        coarsest, *finer = state.features
        return State(coarsest, tuple(reversed(finer)))
