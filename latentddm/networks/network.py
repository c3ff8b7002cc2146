"""The networks: their protocol, their configs, and the registry by which a config chooses one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from latentddm.networks.config import NETWORKS, NetworkConfig
from latentddm.networks.dit import DiT
from latentddm.networks.model import NetworkModel
from latentddm.networks.unet import UNet

__all__ = ["NETWORKS", "Network", "NetworkConfig", "NetworkModel", "default_config", "make_network"]

# One more network is one more line.
NETWORKS["unet"] = UNet
NETWORKS["dit"] = DiT


class Network(Protocol):
    """The members of a network on which training, sampling and export rely.

    `NetworkModel` has them all; it is a torch module and a diffusers model besides.
    """

    config: Mapping[str, Any]
    """At least kind, latent_channels, schedule, classes, times, prediction, dropout."""

    gradient_checkpointing: bool
    """Feature maps are computed again in the backward pass; see `enable_gradient_checkpointing`."""

    one_draw_at_a_time: bool
    """Two-pass gradient: memory for the activations of one draw."""

    memory_format: torch.memory_format
    """Of feature maps; without effect where there are none."""

    training: bool

    def __call__(
        self,
        x_t: Tensor,
        t: Tensor,
        xi: Tensor | None = None,
        labels: Tensor | None = None,
        s: Tensor | None = None,
    ) -> Tensor:
        """x_t [B, C, H, W], t [B]; xi [B, m, C, H, W] or [B, C, H, W]: draws of xi's shape.

        xi None: the mean [B, C, H, W], which is the draw of xi = 0. s [B]: of two times.
        """
        ...

    def draw_parameters(self) -> list[nn.Parameter]:
        """The parameters that xi alone uses."""
        ...

    def check_latents(self, shape: Sequence[int]) -> None:
        """ValueError, naming the setting to change, if latents [C, H, W] do not fit."""
        ...

    def enable_gradient_checkpointing(self) -> None: ...

    def compile(self) -> None: ...


def default_config() -> NetworkConfig:
    """The first network of the registry with its default settings."""
    return next(iter(NetworkConfig.kinds().values()))()  # type: ignore[call-arg]


def make_network(
    config: NetworkConfig, shape: Sequence[int], schedule: str = "flow"
) -> NetworkModel:
    """A network with fresh weights for latents of `shape`, [C, H, W], and the schedule's name."""
    channels, *size = shape
    network: NetworkModel = NETWORKS[config.kind](
        latent_channels=channels, latent_size=size, schedule=schedule, **vars(config)
    )
    return network
