"""Targets drawn from a batch have exactly the distribution of x_0 given x_t."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from latentddm.diffusion.process import corrupt, draw_targets
from latentddm.diffusion.schedules import SCHEDULES, Schedule, make_schedule

ALL = [pytest.param(make_schedule(name), id=name) for name in SCHEDULES]
VALUES = torch.tensor([2.0, -0.5], dtype=torch.float64)
CHANCES = torch.tensor([0.2, 0.8], dtype=torch.float64)


@pytest.mark.parametrize("schedule", ALL)
@pytest.mark.parametrize("t", [0.4, 0.7, 1.0])
def test_the_joint_distribution_with_x_t_is_that_of_x0(t: float, schedule: Schedule) -> None:
    """By enumeration of all batches of three and quadrature over x_t, so that a bias would show.

    Small batches are where an inexact choice (x_0 left out, or always among the targets) is seen.
    """
    noise = torch.linspace(-6, 6, 401, dtype=torch.float64)
    mass = torch.softmax(-(noise**2) / 2, 0)
    uniform = ((torch.arange(2000, dtype=torch.float64) + 0.5) / 2000).repeat(401, 1)
    moments = (torch.ones_like, torch.as_tensor, torch.square, torch.cos)
    error = torch.zeros(len(moments), dtype=torch.float64)
    moved = 0.0
    for batch in product(range(2), repeat=3):
        x0 = VALUES[list(batch)]
        own = x0[0].expand(401, 1)
        x_t = corrupt(own, t, noise[:, None], schedule)
        times = torch.full((401,), t, dtype=torch.float64)
        targets = draw_targets(x_t, times, x0[:, None], uniform, schedule)[..., 0]  # [401, 2000]
        chance = float(CHANCES[list(batch)].prod())
        shift = targets.mean(1) - own[:, 0]
        error += chance * torch.stack([mass @ (shift * moment(x_t[:, 0])) for moment in moments])
        moved += chance * float(mass @ (targets != own).double().mean(1))
    assert moved > 0.01  # the targets are not x_0 itself
    assert float(error.abs().max()) < 1e-4  # weights to the power .9 would make it 2e-3


@pytest.mark.parametrize("schedule", ALL)
def test_at_little_noise_all_targets_are_x0_itself(schedule: Schedule) -> None:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x0, t = normal(4, 3, 2, 2), torch.full((4,), 0.02, dtype=torch.float64)
    uniform = torch.linspace(0, 0.999, 12, dtype=torch.float64).reshape(4, 3)
    x_t = corrupt(x0, t, normal(4, 3, 2, 2), schedule)
    targets = draw_targets(x_t, t, x0, uniform, schedule)
    assert torch.equal(targets, x0[:, None].expand(-1, 3, -1, -1, -1))
