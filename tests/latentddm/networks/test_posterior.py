"""Every network can learn a posterior: of a target with two modes, known exactly."""

from __future__ import annotations

import math

import pytest
import torch

from latentddm.diffusion.process import corrupt
from latentddm.diffusion.schedules import make_schedule
from latentddm.networks.dit import DiTConfig
from latentddm.networks.network import NetworkConfig, make_network
from latentddm.networks.unet import UNetConfig
from latentddm.scores import energy_score

STEPS, BATCH, RATE = 200, 64, 1e-2
UNET = UNetConfig(
    channels=32,
    multipliers=(1,),
    blocks=1,
    up_blocks=1,
    patch_size=4,
    attention_levels=(),
    pointwise_levels=(0,),
    prediction="edm",
    sigma_data=0.15,
)
DIT = DiTConfig(width=32, blocks=2, head_channels=16, prediction="edm", sigma_data=0.15)


@pytest.mark.parametrize(
    ("config", "schedule"), [(UNET, "flow"), (DIT, "cosine")], ids=["unet", "dit"]
)
def test_draws_fall_on_both_modes_as_often_as_the_posterior(
    config: NetworkConfig, schedule: str
) -> None:
    """x_0 is p or -p; given x_t it is p with probability sigmoid(2 alpha <x_t, p> / sigma^2).

    The network is trained on the energy score and evaluated at a time at which both occur.
    """
    torch.manual_seed(0)
    process, network = make_schedule(schedule), make_network(config, (2, 4, 4), schedule)
    mode = torch.randn(2, 4, 4)
    mode = mode / mode.square().mean().sqrt()

    def pairs(t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x0 = (2 * torch.randint(2, (len(t), 1, 1, 1)) - 1.0) * mode
        return x0, corrupt(x0, t, torch.randn_like(x0), process)

    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0, betas=(0.9, 0.99))
    for step in range(STEPS):
        rate = RATE * min(1, (step + 1) / 20) * (1 + math.cos(math.pi * step / STEPS)) / 2
        optimizer.param_groups[0]["lr"] = rate
        t = torch.sigmoid(torch.randn(BATCH) + 1.5).clamp(1e-3, 1 - 1e-3)
        x0, x_t = pairs(t)
        energy_score(network(x_t, t, torch.randn(BATCH, 4, 2, 4, 4)), x0).mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    t = torch.full((128,), 0.8)
    _, x_t = pairs(t)
    alpha, sigma = process.alpha(t), process.sigma(t)
    expected = torch.sigmoid(2 * alpha * (x_t * mode).sum((1, 2, 3)) / sigma**2)
    with torch.no_grad():
        draws = network(x_t, t, torch.randn(128, 64, 2, 4, 4))
    along = (draws * mode).mean((2, 3, 4))  # [B, m], 1 and -1 at the modes
    across = (draws - along[..., None, None, None] * mode).square().mean((2, 3, 4)).sqrt()
    assert (along.abs() - 1).abs().mean() < 0.15
    assert across.mean() < 0.25
    share = (along > 0).float().mean(1)
    assert (share - expected).abs().mean() < 0.17
    assert (0.5 - expected).abs().mean() > 0.35  # the error of a network that ignores x_t
    assert ((share > 0.05) & (share < 0.95)).sum() > 10  # and both modes are drawn for one x_t
