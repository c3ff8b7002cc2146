"""Tiny networks of every kind, for the tests of the protocol of networks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from latentddm.networks.dit import DiTConfig
from latentddm.networks.network import NetworkConfig, NetworkModel, make_network
from latentddm.networks.unet import UNetConfig

UNET = UNetConfig(
    channels=16, multipliers=(1, 2), blocks=1, attention_levels=(1,), head_channels=16
)
PATCHES = UNetConfig(
    channels=16,
    multipliers=(1,),
    blocks=1,
    patch_size=4,
    attention_levels=(0,),
    pointwise_levels=(0,),
    head_channels=16,
)
DIT = DiTConfig(width=32, blocks=3, head_channels=16)

EXPANSIONS = ["input", "middle", "up0", "up1", "up3", "output"]

# One of each kind, and one for each place where draws can split off.
KINDS: dict[str, NetworkConfig] = {"unet": UNET, "dit": DIT}
VARIANTS: dict[str, NetworkConfig] = {
    **{f"unet, {place}": replace(UNET, expansion=place) for place in EXPANSIONS},
    "unet, patches": PATCHES,
    "unet, patches, middle": replace(PATCHES, expansion="middle"),
    "unet, patches, up1": replace(PATCHES, expansion="up1"),
    "unet, patches, output": replace(PATCHES, expansion="output"),
    "unet, global": replace(UNET, expansion="up1", global_noise=True),
    "dit": DIT,
    "dit, last block": replace(DIT, draw_blocks=1),
    "dit, global": replace(DIT, draw_blocks=2, global_noise=True),
    "dit, posterior noise": replace(DIT, noise="posterior", gaussian_components=5),
    "dit, gaussian mean": replace(
        DIT, noise="posterior", gaussian_mean=True, gaussian_components=5
    ),
    "unet, gaussian mean": replace(UNET, gaussian_mean=True, gaussian_components=5),
    "dit, learnt": replace(DIT, positions="learnt", position_grid=3),
}
SHAPE = (3, 8, 12)


def fresh(config: NetworkConfig, schedule: str = "flow", **changes: Any) -> NetworkModel:
    """A network with its initial weights, of seed 0."""
    torch.manual_seed(0)
    return make_network(replace(config, **changes), SHAPE, schedule)


def random_network(config: NetworkConfig, schedule: str = "flow", **changes: Any) -> NetworkModel:
    """A network with no parameter at its initial zero, in training mode."""
    network = fresh(config, schedule, **changes)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    return network


def inputs(batch: int = 2, m: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """x_t [B, C, H, W], t [B], xi [B, m, C, H, W]."""
    generator = torch.Generator().manual_seed(1)
    x_t = torch.randn(batch, *SHAPE, generator=generator)
    xi = torch.randn(batch, m, *SHAPE, generator=generator)
    return x_t, torch.linspace(0.2, 0.8, batch), xi


def gradients(network: NetworkModel, seed: int = 0) -> list[Tensor]:
    """Of a loss that couples the draws, with dropout drawn from `seed`."""
    network.zero_grad()
    x_t, t, xi = inputs()
    torch.manual_seed(seed)
    draws = network(x_t, t, xi)
    loss = draws.square().mean() - (draws[:, 0] - draws[:, 1]).square().sum().sqrt() / 10
    loss.backward()
    return [p.grad.clone() for p in network.parameters() if p.grad is not None]
