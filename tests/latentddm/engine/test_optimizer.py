"""The learning rate follows its closed form, and AdamW has the settings of the config."""

from __future__ import annotations

import math

import pytest
import torch
from messages import raises_naming
from torch import nn

from latentddm.engine.config import load_config
from latentddm.engine.errors import UserError
from latentddm.engine.optimizer import OptimizerConfig, learning_rate, make_optimizer

RATE, WARMUP, TOTAL = 2e-3, 1_000, 10_000


def schedule(decay: str, warmup: int = WARMUP) -> OptimizerConfig:
    return OptimizerConfig(learning_rate=RATE, warmup_images=warmup, decay=decay)  # type: ignore[arg-type]


@pytest.mark.parametrize("decay", ["constant", "cosine"])
@pytest.mark.parametrize(("images", "share"), [(0, 1 / 1000), (249, 1 / 4), (999, 1.0)])
def test_the_warm_up_is_linear_in_images(decay: str, images: int, share: float) -> None:
    assert learning_rate(schedule(decay), images, TOTAL) == pytest.approx(share * RATE, rel=1e-12)


@pytest.mark.parametrize("images", [1_000, 5_000, 9_999, 20_000])
def test_a_constant_rate_stays_constant_after_the_warm_up(images: int) -> None:
    assert learning_rate(schedule("constant"), images, TOTAL) == RATE


@pytest.mark.parametrize(
    ("images", "share"),
    [
        (1_000, (1 + math.cos(0.1 * math.pi)) / 2),  # the cosine begins at image 0, not after it
        (2_500, (1 + math.sqrt(0.5)) / 2),
        (5_000, 1 / 2),
        (7_500, (1 - math.sqrt(0.5)) / 2),
        (10_000, 0.0),
        (12_000, 0.0),  # a phase in whole batches may end a little later
    ],
)
def test_a_cosine_falls_to_zero_at_the_last_image(images: int, share: float) -> None:
    rate = learning_rate(schedule("cosine"), images, TOTAL)
    assert rate == pytest.approx(share * RATE, rel=1e-12, abs=1e-18)


@pytest.mark.parametrize("decay", ["constant", "cosine"])
def test_without_a_warm_up_the_first_step_has_the_whole_rate(decay: str) -> None:
    assert learning_rate(schedule(decay, warmup=0), 0, TOTAL) == RATE


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("learning_rate", "-1e-4"),
        ("learning_rate", ".nan"),
        ("warmup_images", "-1"),
        ("weight_decay", "-0.1"),
        ("clip_norm", "0"),
        ("clip_norm", "-1"),  # would turn the gradient round
        ("beta1", "1"),
        ("beta2", "-0.5"),
    ],
)
def test_a_number_that_makes_no_optimizer_is_refused_by_its_key(key: str, value: str) -> None:
    with raises_naming(UserError, f"{key} must"):
        load_config(OptimizerConfig, None, [f"{key}={value}"])


def test_adamw_has_the_settings_of_the_config_and_the_trainable_parameters_alone() -> None:
    module = nn.Linear(3, 2)
    module.bias.requires_grad_(False)
    config = OptimizerConfig(learning_rate=RATE, weight_decay=0.1, beta1=0.5, beta2=0.9)
    optimizer = make_optimizer(module, config)
    (group,) = optimizer.param_groups
    assert group["params"] == [module.weight]
    assert (group["lr"], group["betas"], group["weight_decay"]) == (RATE, (0.5, 0.9), 0.1)
    # The first step of AdamW: the weights shrink by lr x weight_decay, then move by lr.
    before = module.weight.detach().clone()
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    expected = before * (1 - RATE * 0.1) - RATE
    torch.testing.assert_close(module.weight.detach(), expected, rtol=1e-6, atol=1e-7)
