"""The network of the view `discriminator`."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from latentddm.networks.layers import Convolution, Norm, TimeEmbedding

SCALE_DECAY = 0.99  # of the running mean square of differences, for each step


class DiscriminatorNetwork(nn.Module):
    """A logit of a step (x_s, x_t) from t to s: residual blocks on patches, averaged.

    Its state includes the running mean square of the differences of its features.
    """

    _no_split_modules = ("DiscriminatorBlock",)
    square_sum: Tensor
    square_weight: Tensor

    def __init__(self, latent_channels: int, width: int, blocks: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.time_t, self.time_s = TimeEmbedding(width), TimeEmbedding(width)
        self.input = Convolution(2 * latent_channels * patch**2, width)
        self.blocks = nn.ModuleList(DiscriminatorBlock(width) for _ in range(blocks))
        self.norm = Norm(width)
        self.output = nn.Linear(width, 1)
        self.register_buffer("square_sum", torch.zeros(()))
        self.register_buffer("square_weight", torch.zeros(()))

    def forward(self, x_s: Tensor, x_t: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [R] and the features [R, F, h, w] whose average they are a linear function of."""
        maps = self.features(x_s, x_t, t, s)
        return self.output(maps.mean((2, 3)))[:, 0].float(), maps

    def features(self, x_s: Tensor, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """The last features, [R, F, h, w]."""
        embedding = self.time_t(t) + self.time_s(s)
        x = self.input(functional.pixel_unshuffle(torch.cat([x_s, x_t], dim=1), self.patch))
        for block in self.blocks:
            x = block(x, embedding)
        return functional.silu(self.norm(x))

    @torch.no_grad()
    def follow(self, sum_and_count: Tensor) -> None:
        """Add a step's sum of mean squares and their count, [2], to the running mean."""
        seen = (sum_and_count[1] > 0).to(self.square_sum)
        mean = sum_and_count[0] / sum_and_count[1].clamp_min(1)
        decay = 1 - (1 - SCALE_DECAY) * seen
        self.square_sum.mul_(decay).add_((1 - decay) * mean)
        self.square_weight.mul_(decay).add_(1 - decay)

    def scale(self) -> Tensor:
        """One over the running root mean square of the differences; 0 before the first step."""
        tiny = torch.finfo(self.square_sum.dtype).tiny
        mean = self.square_sum / self.square_weight.clamp_min(tiny)
        return torch.where(mean > tiny, mean.clamp_min(tiny).rsqrt(), 0.0)


class DiscriminatorBlock(nn.Module):
    """A residual block, scaled and shifted by the times. [R, width, h, w]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first_norm, self.second_norm = Norm(width), Norm(width)
        self.first, self.second = Convolution(width, width), Convolution(width, width)
        self.modulate = nn.Linear(width, 2 * width)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        residual = self.first(functional.silu(self.first_norm(x)))
        scale, shift = self.modulate(embedding)[:, :, None, None].chunk(2, dim=1)
        residual = functional.silu(torch.addcmul(shift, self.second_norm(residual), 1 + scale))
        return x + self.second(residual)
