"""Small layers of the networks, and operations on rows that the draws of one x_t share."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from latentddm.networks.attention import attention

TIME_FREQUENCIES = 64
HIGHEST_FREQUENCY = 1000.0
SMOOTH_FREQUENCY = 32.0  # the highest for derivatives by t, see TimeEmbedding


class TimeEmbedding(nn.Module):
    """Sines and cosines of t at geometric frequencies, through a perceptron. [B] -> [B, width].

    With `classes`, a vector for each label is added before the last layer; the label `classes`
    stands for no label. With two `times` so are sines and cosines of the length of a step, through
    weights that start at zero. highest: of the frequencies, None for HIGHEST_FREQUENCY. Where
    derivatives by t are targets in training (MeanFlow), it is SMOOTH_FREQUENCY or less: those of
    sin(1000 t) would bury the rest (arXiv 2410.11081, section 4.1).
    """

    frequencies: Tensor

    def __init__(
        self, width: int, classes: int = 0, times: int = 1, highest: float | None = None
    ) -> None:
        super().__init__()
        self.highest = HIGHEST_FREQUENCY if highest is None else highest
        self.register_buffer("frequencies", self._frequencies(), persistent=False)
        self.input = nn.Linear(2 * TIME_FREQUENCIES, width)
        self.label = nn.Embedding(classes + 1, width) if classes else None
        self.output = nn.Linear(width, width)
        self.step = nn.Linear(2 * TIME_FREQUENCIES, width, bias=False) if times == 2 else None
        if self.step is not None:
            nn.init.zeros_(self.step.weight)

    def forward(
        self, t: Tensor, labels: Tensor | None = None, step: Tensor | None = None
    ) -> Tensor:
        """t, step: [B]; without `step` it is 0. ValueError for a step where there is one time."""
        hidden = self.input(self._waves(t))
        if self.step is not None:
            hidden = hidden + self.step(self._waves(torch.zeros_like(t) if step is None else step))
        elif step is not None:
            raise ValueError("s is for a network of two times; set network.times to 2.")
        if self.label is not None:
            if labels is None:
                labels = torch.full_like(t, self.label.num_embeddings - 1, dtype=torch.long)
            hidden = hidden + self.label(labels)
        return functional.silu(self.output(functional.silu(hidden)))

    def _waves(self, t: Tensor) -> Tensor:
        phases = t[:, None] * self.frequencies  # [B, frequencies]
        return torch.cat([phases.sin(), phases.cos()], dim=1).to(self.input.weight.dtype)

    def _frequencies(self, device: torch.device | None = None) -> Tensor:
        steps = torch.linspace(
            0, math.log(self.highest), TIME_FREQUENCIES, dtype=torch.float32, device=device
        )
        return torch.exp(steps)

    def _apply(self, function: Any, recurse: bool = True) -> TimeEmbedding:
        """Move or convert; but in half precision sin(1000 t) would be off by radians."""
        super()._apply(function, recurse)
        if self.frequencies.dtype in (torch.bfloat16, torch.float16):
            self.frequencies = self._frequencies(self.frequencies.device)
        return self


class Norm(nn.GroupNorm):
    """Group normalisation with groups of at least 8 channels, at most 32 groups.

    A pointwise norm is for maps of one position: all channels are its one group, as the statistics
    of a few numbers are too noisy.

    The kernels accumulate the statistics in float32 whatever the format of x. Autocast would copy
    x to float32 and leave the result so, which doubles the memory; it is kept out.
    """

    def __init__(self, width: int, pointwise: bool = False) -> None:
        groups = 1 if pointwise else min(32, max(1, width // 8))
        while width % groups:
            groups -= 1
        super().__init__(groups, width, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
            if self.num_groups == 1 and x.shape[2:] == (1, 1):  # the same, four times as fast
                rows = functional.layer_norm(x.flatten(1), x.shape[1:2], weight, bias, self.eps)
                return rows[..., None, None]
            return functional.group_norm(x, self.num_groups, weight, bias, self.eps)


class Convolution(nn.Conv2d):
    """A convolution that keeps the size of its map: 3 x 3, or pointwise.

    On a map of one position a pointwise convolution is a matrix product, and is computed as one:
    twice as fast.
    """

    def __init__(
        self, width_in: int, width: int, pointwise: bool = False, bias: bool = True
    ) -> None:
        size, padding = (1, 0) if pointwise else (3, 1)
        super().__init__(width_in, width, size, padding=padding, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.kernel_size == x.shape[2:] == (1, 1):
            product = functional.linear(x.flatten(1), self.weight.flatten(1), self.bias)
            return product[..., None, None]
        return super().forward(x)


class TokenAttention(nn.Module):
    """Multi-head self-attention between tokens. [R, N, width] -> [R, N, width]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.input = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = self.input(tokens).unflatten(2, (3, self.heads, -1)).unbind(2)
        return self.output(attention(query, key, value).flatten(2))


class NoiseGate(nn.Linear):
    """Factors of the numbers of a patch of xi, from the embedding of t (iDDM, arXiv 2609.37147).

    Each number has a factor of its own, near 1 at first: coarse and fine detail of x_0 are open at
    different times. [B, width] -> [rows, numbers].
    """

    def __init__(self, width: int, numbers: int) -> None:
        super().__init__(width, numbers)
        nn.init.ones_(self.bias)

    def forward(self, embedding: Tensor, rows: int) -> Tensor:  # type: ignore[override]
        return repeat_rows(super().forward(embedding), rows)


class TokenNoise(nn.Module):
    """Patches of xi [R, N, D] behind a `NoiseGate`, to the width of the tokens.

    There is no bias: xi = 0 contributes nothing. scale: of the weights, in default ones.
    """

    def __init__(self, width: int, numbers: int, scale: float = 1.0) -> None:
        super().__init__()
        self.gate = NoiseGate(width, numbers)
        self.linear = nn.Linear(numbers, width, bias=False)
        self.linear.weight.data *= scale

    def forward(self, xi: Tensor, embedding: Tensor) -> Tensor:
        return self.linear(self.gate(embedding, len(xi))[:, None] * xi)


def repeat_rows(x: Tensor, rows: int) -> Tensor:
    """[B, ...] -> [rows, ...], each row rows / B times; x itself if it has them already."""
    return x if len(x) == rows else x.repeat_interleave(rows // len(x), dim=0)


def add_rows(x: Tensor, y: Tensor) -> Tensor:
    """x + y, where the one of [B, ...] counts for all draws of the other of [B m, ...]."""
    if len(x) == len(y):
        return x + y
    few, many = (x, y) if len(x) < len(y) else (y, x)
    return (many.unflatten(0, (len(few), -1)) + few[:, None]).flatten(0, 1)


def with_global_noise(embedding: Tensor, patches: Tensor, noise: TokenNoise) -> Tensor:
    """The embedding of t and of xi as a whole: [B, width], patches of xi [R, N, D] -> [R, width].

    sum over patches / sqrt(N): standard normal numbers, the same for all positions of a draw.
    """
    whole = patches.mean(dim=1, keepdim=True) * patches.shape[1] ** 0.5
    return add_rows(embedding, noise(whole, embedding)[:, 0])
