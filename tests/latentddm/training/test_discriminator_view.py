"""The learnt view: same noise for all of a row, trained by its own loss, resumed bit-equal."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import Processes
from test_generator_training import final_files, losses
from test_views_in_training import inputs_of, with_views
from tiny_runs import PLAIN, generator_config, phase
from torch import Tensor

from latentddm.diffusion.process import bridge_step, corrupt
from latentddm.diffusion.schedules import FlowSchedule
from latentddm.engine.errors import UserError
from latentddm.engine.metric_accumulator import MetricAccumulator
from latentddm.engine.run import RunFolder
from latentddm.training.config import TrainConfig
from latentddm.training.generator import train
from latentddm.training.views.discriminator import (
    PENALTY_SIZE,
    Discriminator,
    DiscriminatorConfig,
    gradient_penalty,
    logistic_loss,
)

SETTINGS: dict[str, Any] = {"width": 16, "blocks": 1, "learning_rate": 1e-3}


def made(store: Path, **settings: Any) -> Discriminator:
    inputs = inputs_of(store, 0)
    view = DiscriminatorConfig(**SETTINGS | settings).make(inputs)
    assert isinstance(view, Discriminator)
    assert inputs.learnt == [view]
    return view


def batch(seed: int = 0, size: int = 8, m: int = 3) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x_t, t, draws and targets."""
    random = torch.Generator().manual_seed(seed)
    x0, noise = (torch.randn(size, 3, 8, 8, generator=random) for _ in range(2))
    t = 0.1 + 0.9 * torch.rand(size, generator=random)
    draws = torch.randn(size, m, 3, 8, 8, generator=random)
    return corrupt(x0, t, noise, FlowSchedule()), t, draws, x0


def one_step(
    view: Discriminator, images: int, x_t: Tensor, t: Tensor, draws: Tensor, target: Tensor
) -> dict[str, float]:
    """As the trainer: place, compare, learn."""
    accumulator = MetricAccumulator()
    view.begin(images, len(t))
    view.place(slice(0, len(t)), x_t, t, draws, target)
    view.learn(images, accumulator)
    return accumulator.collect(inputs_accelerator(view))


def inputs_accelerator(view: Discriminator) -> Any:
    return view._inputs.accelerator


def test_steps_of_draws_and_target_have_one_noise_and_land_below_t(tiny_store: Path) -> None:
    view = made(tiny_store)
    x_t, t, draws, target = batch()
    one_step(view, 0, x_t, t, draws, target)  # the scale of the features is known after one step
    view.begin(8, 8)
    view.place(slice(0, 8), x_t, t, draws, target)
    steps, placed = view._steps, view._placed[-1]
    assert ((steps.s >= 0) & (steps.s < t)).all()
    expected = bridge_step(x_t, draws[:, 0], t, steps.s, steps.noise, churn=1.0)
    assert torch.equal(placed.drawn, expected)
    expected = bridge_step(x_t, target, t, steps.s, steps.noise, churn=1.0)
    assert torch.equal(placed.real, expected)
    same = torch.stack([target, draws[:, 0], target], dim=1)
    features = view.features(same, t)
    torch.testing.assert_close(features[:, 0], features[:, 2], rtol=1e-5, atol=1e-6)
    assert (features[:, 0] - features[:, 1]).abs().amax() > 1e-3


def test_a_landing_is_a_step_of_one_length(tiny_store: Path) -> None:
    view = made(tiny_store, landing=0.5)
    x_t, t, draws, target = batch()
    view.begin(0, 8)
    view.place(slice(0, 8), x_t, t, draws, target)
    assert torch.equal(view._steps.s, (t - 0.5).clamp_min(0))


@pytest.mark.parametrize(("spots", "count"), [("whole", 1), ("position", 16)])
def test_gradients_reach_the_draws_and_the_frozen_network_keeps_its_weights(
    tiny_store: Path, spots: Any, count: int
) -> None:
    score = with_views({"whole": 0.5}).score
    config = DiscriminatorConfig(**SETTINGS, spots=spots, share=0.5, t_min=0.3)
    inputs = inputs_of(tiny_store, 0)
    made_score = type(score)(views={"discriminator": config}).make(inputs)
    (view,) = inputs.learnt
    assert isinstance(view, Discriminator)
    x_t, t, draws, target = batch()
    for images in (0, 8):
        one_step(view, images, x_t, t, draws, target)
    weights = {key: value.clone() for key, value in view.network.state_dict().items()}
    view.begin(16, 8)
    view.place(slice(0, 8), x_t, t, draws, target)
    rows = config.rows(t)
    assert rows is not None
    assert 0 < len(rows) < 4
    assert view.features(draws[rows], t[rows]).shape == (len(rows), 3, 16, count)
    draws.requires_grad_()
    terms = made_score(draws, target, t)
    terms.score(1.0).mean().backward()
    assert draws.grad is not None
    reached = draws.grad.abs().amax((1, 2, 3, 4)) > 0
    assert reached.nonzero()[:, 0].tolist() == rows.tolist()
    assert all(parameter.grad is None for parameter in view.network.parameters())
    assert all(torch.equal(weights[key], v) for key, v in view.network.state_dict().items())


def test_it_learns_to_tell_wrong_draws_and_its_differences_have_unit_size(
    tiny_store: Path,
) -> None:
    """Draws of a tenth of the right spread: far below the loss 2 log 2 of not knowing."""
    view = made(tiny_store, penalty=0.01, landing=1.0, learning_rate=5e-3)
    for step in range(60):
        x_t, t, draws, target = batch(step)
        logged = one_step(view, 8 * step, x_t, t, 0.1 * draws, target)
        if step == 0:
            assert logged["discriminator/loss"] == pytest.approx(2 * math.log(2), abs=0.3)
    assert logged["discriminator/loss"] < 0.6 * 2 * math.log(2)
    view.begin(999, 8)
    view.place(slice(0, 8), x_t, t, 0.1 * draws, target)
    apart = view.features(0.1 * draws[:, :1], t) - view.features(target[:, None], t)
    assert 0.3 < float(apart.square().mean()) < 3


def test_draws_that_are_right_cannot_be_told_from_the_data(tiny_store: Path) -> None:
    view = made(tiny_store)
    total = []
    for step in range(40):
        random = torch.Generator().manual_seed(step)
        target, draw, x_t = (torch.randn(8, 3, 8, 8, generator=random) for _ in range(3))
        logged = one_step(view, 8 * step, x_t, torch.ones(8), draw[:, None], target)
        total.append(logged["discriminator/loss"])
    assert sum(total[-20:]) / 20 == pytest.approx(2 * math.log(2), abs=0.15)


def test_the_penalty_is_the_squared_gradient_and_the_loss_the_logistic_one() -> None:
    random = torch.Generator().manual_seed(0)
    slope = torch.randn(50, generator=random, dtype=torch.float64)
    x, z = (torch.randn(20_000, 50, generator=random, dtype=torch.float64) for _ in range(2))
    found = gradient_penalty(x @ slope, (x + PENALTY_SIZE * z) @ slope, PENALTY_SIZE).mean()
    assert float(found) == pytest.approx(float(slope.square().sum()), rel=0.05)
    real, drawn = torch.tensor([0.0, 2.0]), torch.tensor([0.0, -1.0])
    expected = [2 * math.log(2), -math.log(1 / (1 + math.exp(-2))) - math.log(1 - 1 / (1 + math.e))]
    torch.testing.assert_close(logistic_loss(real, drawn), torch.tensor(expected))


def training(store: Path, output: Path, images: int = 48, **settings: Any) -> TrainConfig:
    """16 images of plain diffusion, then a DDM half of whose score is learnt."""
    learnt = {"weight": 0.5, "t_min": 0.3, "share": 0.5, **SETTINGS, **settings}
    objective = with_views({"whole": 0.5, "discriminator": learnt})
    phases = phase(16, PLAIN), phase(images - 16, objective)
    return generator_config(store, output, *phases)


def test_a_stopped_run_with_the_view_ends_bit_equal(tiny_store: Path, tmp_path: Path) -> None:
    straight = train(training(tiny_store, tmp_path / "straight"))
    train(training(tiny_store, tmp_path / "stopped", images=32))
    stopped = train(training(tiny_store, tmp_path / "stopped"))
    one, other = final_files(straight), final_files(stopped)
    names = ("network", "ema", "ema_0.05", "optimizer", "discriminator", "discriminator_optimizer")
    assert set(one) == set(other) == {f"{name}.safetensors" for name in names}
    for name, tensors in one.items():
        assert all(torch.equal(tensors[key], other[name][key]) for key in tensors), name
    assert one["discriminator.safetensors"]["square_weight"] > 0
    assert losses(straight) == losses(stopped)
    lines = straight.read_metrics()
    assert ["discriminator/loss" in line for line in lines[:2]] == [False, False]
    assert any("discriminator/loss" in line for line in lines[2:])
    assert not any("discriminator" in str(path) for path in straight.path.glob("averages/**/*"))


def test_two_processes_and_micro_batches_train_the_same(tiny_store: Path, tmp_path: Path) -> None:
    parts = training(tiny_store, tmp_path / "alone", images=32, t_min=0.0)
    alone = train(replace(parts, loop=replace(parts.loop, micro_batches=2)))
    two = RunFolder(tmp_path / "two")
    config = training(tiny_store, two.path, images=32, t_min=0.0)
    Processes(2, lambda: train(config), tmp_path).finish()
    expected, found = final_files(alone), final_files(two)
    for name in ("network", "discriminator"):
        for key, tensor in expected[f"{name}.safetensors"].items():
            other = found[f"{name}.safetensors"][key]
            torch.testing.assert_close(other, tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"width": 0}, r"views\.discriminator: width .*0"),
        ({"landing": 0}, r"views\.discriminator: landing .*0"),
        ({"learning_rate": 0}, r"views\.discriminator: learning_rate .*0"),
        ({"penalty": -1}, r"views\.discriminator: penalty .*-1"),
        ({"spots": "edge"}, r"views\.discriminator\.spots.*whole, position"),
    ],
)
def test_a_wrong_setting_is_one_sentence(settings: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        with_views({"discriminator": settings})


def test_sharded_training_is_refused(tiny_store: Path, tmp_path: Path) -> None:
    wanted = training(tiny_store, tmp_path / "run")
    with pytest.raises(UserError, match=r"score\.views .*loop\.sharded"):
        train(replace(wanted, loop=replace(wanted.loop, sharded=True)))
    assert not (tmp_path / "run").exists()


def test_a_patch_that_does_not_fit_is_refused(tiny_store: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"patch_size.*discriminator.* 3.*8 x 8"):
        train(training(tiny_store, tmp_path / "run", patch_size=3))
    with pytest.raises(ValueError, match=r"discriminator.*training"):
        DiscriminatorConfig().make()
