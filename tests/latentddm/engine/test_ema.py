"""The power-function average has the paper's profile and is a function of images seen alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from latentddm.engine.ema import EMA, ema_decay, power_exponent


@pytest.mark.parametrize("std", [0.01, 0.05, 0.10, 0.20])
def test_the_exponent_gives_the_relative_width(std: float) -> None:
    gamma = power_exponent(std)
    assert ((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3))) ** 0.5 == pytest.approx(std, rel=1e-9)


def test_the_average_of_a_ramp_is_the_mean_of_the_profile() -> None:
    # The profile (gamma + 1) u^gamma on [0, 1] has the mean (gamma + 1) / (gamma + 2).
    module = nn.Linear(1, 1, bias=False)
    ema = EMA(module, 0.10)
    total, batch = 20_000, 2
    for images in range(batch, total + 1, batch):
        module.weight.data.fill_(images / total)
        ema.update(images, batch)
    expected = (ema.gamma + 1) / (ema.gamma + 2)
    assert ema.module.weight.item() == pytest.approx(expected, rel=1e-3)


def test_the_first_step_copies_the_weights() -> None:
    module = nn.Linear(2, 2)
    ema = EMA(module, 0.05)
    module.weight.data.add_(1)
    ema.update(8, 8)
    assert ema_decay(ema.gamma, 8, 8) == 0
    assert torch.equal(ema.module.weight, module.weight)
