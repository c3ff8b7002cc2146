"""A UNet whose draws can split off at many places.

It is one sequence of parts; those before the place where the draws split off run once for each x_t
(the trunk), the rest once for each draw. The parts are in `blocks`, their sequence is in
`unet_builder`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional

from latentddm.networks.blocks import Block, Input, Output, State
from latentddm.networks.layers import TimeEmbedding, TokenNoise, with_global_noise
from latentddm.networks.model import NetworkModel
from latentddm.networks.unet_builder import UNetBuilder, UNetConfig

__all__ = ["UNet", "UNetConfig"]


class UNet(NetworkModel[UNetConfig, State]):
    """Residual blocks at several resolutions; settings: `UNetConfig`."""

    Config = UNetConfig
    _no_split_modules: ClassVar[tuple[str, ...]] = ("Block",)

    def build(self, config: UNetConfig, latent_channels: int) -> None:
        embedding = config.embedding_width or 4 * config.channels
        builder = UNetBuilder(config, self.input_channels, latent_channels, embedding)
        builder.go_down()
        builder.turn()
        builder.go_up()
        if config.expansion == "output":
            builder.go_up_again()

        self.time_embedding = TimeEmbedding(
            embedding, config.classes, config.times, config.time_frequency
        )
        self.trunk = nn.ModuleList(builder.parts[: builder.split])
        self.draw_parts = nn.ModuleList(builder.parts[builder.split :])
        numbers = latent_channels * config.patch_size**2
        self.global_noise = TokenNoise(embedding, numbers) if config.global_noise else None
        self.last = Output(
            builder.width,
            latent_channels,
            patch=config.patch_size,
            pointwise=0 in config.pointwise_levels,
        )

    def run_trunk(self, x_t: Tensor, embedding: Tensor) -> State:
        first = State(x_t.contiguous(memory_format=self.memory_format))
        return self.run_parts(self.trunk, first, embedding, embedding, None)

    def run_draws(self, state: State, embedding: Tensor, xi: Tensor | None) -> Tensor:
        condition = embedding
        if xi is not None:
            if self.global_noise is not None:
                patches = functional.pixel_unshuffle(xi, self.config["patch_size"])
                tokens = patches.flatten(2).transpose(1, 2)  # [R, N, D]
                condition = with_global_noise(embedding, tokens, self.global_noise)
            xi = xi.contiguous(memory_format=self.memory_format)
        return self.last(self.run_parts(self.draw_parts, state, embedding, condition, xi).x)

    def noise_layers(self) -> list[nn.Module]:
        parts = [part for part in self.draw_parts if isinstance(part, Input | Block)]
        layers = [layer for part in parts for layer in part.noise_layers()]
        return layers + ([] if self.global_noise is None else [self.global_noise])

    def check_latents(self, shape: Sequence[int]) -> None:
        super().check_latents(shape)
        patch, multipliers = self.config["patch_size"], self.config["multipliers"]
        height, width = shape[1:]
        divisor = patch * 2 ** (len(multipliers) - 1)
        if height % divisor or width % divisor:
            raise ValueError(
                f"latents of {height} x {width} need edges divisible by {divisor}: patch_size, "
                "doubled for each level after the first in multipliers; change one of these"
            )
        pointwise = 0 in self.config["pointwise_levels"]
        attends = 0 in self.config["attention_levels"]
        if len(multipliers) == 1 and pointwise and not attends and (height, width) != (patch,) * 2:
            raise ValueError(
                f"latents of {height} x {width} are several patches of patch_size {patch}, and "
                "nothing in a pointwise network of one level connects them; set patch_size to "
                f"{max(height, width)} or attention_levels to [0]"
            )
