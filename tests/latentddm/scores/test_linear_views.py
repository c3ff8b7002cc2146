"""Linear views: bands and visible components are what their names say."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import pytest
import torch
from score_definitions import draws_and_target
from torch import Tensor
from view_inputs import InMemory

from latentddm.diffusion.schedules import CosineSchedule, FlowSchedule
from latentddm.engine.config import build
from latentddm.engine.errors import UserError
from latentddm.scores import EnergyConfig, ScoreConfig
from latentddm.scores.views import Differences, View, ViewConfig
from latentddm.scores.views.bands import BandsConfig
from latentddm.scores.views.components import (
    cosine_components,
    cosine_octaves,
    principal_axes,
)
from latentddm.scores.views.visible import VisibleConfig

T = torch.tensor([0.3, 0.8], dtype=torch.float64)


def noise(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def squares(view: View, x: Tensor, t: Tensor = T) -> Tensor:
    """Mean squares at the spots of the features of x, of which the difference to zero is x."""
    return view.mean_squares(Differences([view.features(x, t) - view.features(0 * x, t)]))


def correlated(count: int, *shape: int) -> Tensor:
    """Gaussian latents, each number with a variance and a correlation of its own."""
    dimension = math.prod(shape)
    mixing = noise(dimension, dimension, seed=5) * torch.logspace(0, -2, dimension)
    x = noise(count, dimension, seed=6) @ mixing.T.double()
    return (x / x.std()).unflatten(1, shape)


def test_cosine_components_are_the_sums_in_their_definition() -> None:
    x = noise(3, 5)
    found = cosine_components(x)
    for k, m in product(range(3), range(5)):
        unit = math.sqrt((2 if k else 1) * (2 if m else 1) / 15)
        expected = sum(
            float(x[i, j])
            * math.cos(math.pi * (2 * i + 1) * k / 6)
            * math.cos(math.pi * (2 * j + 1) * m / 10)
            for i, j in product(range(3), range(5))
        )
        assert float(found[k, m]) == pytest.approx(unit * expected, abs=1e-12)


def test_octaves_double_and_the_longer_edge_counts() -> None:
    assert cosine_octaves(8, 8).diagonal().tolist() == [0, 1, 2, 2, 3, 3, 3, 3]
    assert cosine_octaves(8, 8)[0].tolist() == [0, 1, 2, 2, 3, 3, 3, 3]
    assert cosine_octaves(2, 4).tolist() == [[0, 1, 2, 2], [2, 2, 2, 2]]
    assert cosine_octaves(1, 1).tolist() == [[0]]


@pytest.mark.parametrize("shape", [(6, 8, 8), (6, 4, 6), (6, 1, 1)])
@pytest.mark.parametrize("groups", [1, 3, 6])
@pytest.mark.parametrize("octaves", [None, 2])
def test_bands_hold_all_of_a_sample(
    shape: tuple[int, int, int], groups: int, octaves: int | None
) -> None:
    """Parseval: the bands' means times their numbers of components add up to the square."""
    x = noise(2, 3, *shape)
    bands = cosine_octaves(*shape[1:]).flatten()
    bands = bands if octaves is None else bands.clamp_max(octaves - 1)
    found = squares(BandsConfig(groups=groups, octaves=octaves).make(), x)
    counts = bands.bincount().repeat(groups) * (shape[0] // groups)
    assert found.shape == (2, 3, len(counts))
    torch.testing.assert_close((found * counts).sum(2), x.square().flatten(2).sum(2))


def test_a_wave_lies_in_its_band_and_in_its_channels() -> None:
    wave = torch.cos(math.pi * (2 * torch.arange(8) + 1) * 3 / 16).double()
    x = torch.zeros(1, 1, 4, 8, 8, dtype=torch.float64)
    x[0, 0, 3] = wave[:, None]
    found = squares(BandsConfig(groups=2).make(), x)[0, 0].reshape(2, 4)
    assert found[1, 2] > 0
    found[1, 2] = 0
    assert found.abs().max() < 1e-12
    flat = squares(BandsConfig().make(), torch.ones(1, 1, 4, 8, 8).double())[0, 0]
    torch.testing.assert_close(flat, torch.tensor([64.0, 0, 0, 0]).double(), atol=1e-12, rtol=0)


@pytest.mark.parametrize("schedule", [FlowSchedule(), CosineSchedule()])
@pytest.mark.parametrize("basis", ["cosine", "principal"])
def test_a_gain_is_the_squared_correlation_of_a_component_now_and_after_the_step(
    schedule: Any, basis: Any
) -> None:
    data = correlated(20_000, 2, 3, 3)
    view: Any = VisibleConfig(step=0.3, basis=basis, samples=20_000).make(InMemory(data, schedule))
    s = torch.tensor([0.0, 0.4, 0.9], dtype=torch.float64)
    gains = view.gains(s).flatten(1)
    assert torch.equal(gains[0], torch.ones_like(gains[0]))
    for index in (1, 2):
        x_s = schedule.alpha(s[index]) * data + schedule.sigma(s[index]) * noise(20_000, 2, 3, 3)
        if basis == "cosine":
            now, then = cosine_components(data).flatten(1), cosine_components(x_s).flatten(1)
        else:
            axes, _ = principal_axes(data)
            now, then = data.flatten(1) @ axes, x_s.flatten(1) @ axes
        both = torch.stack([now - now.mean(0), then - then.mean(0)])
        found = (both[0] * both[1]).mean(0) ** 2 / both.square().mean(1).prod(0)
        torch.testing.assert_close(gains[index], found, atol=0.03, rtol=0)


@pytest.mark.parametrize(
    ("basis", "count"), [("cosine", 200), ("principal", 200), ("principal", 9)]
)
def test_the_visible_norm_is_the_whole_at_the_end_and_coarse_at_the_start(
    basis: Any, count: int
) -> None:
    """Of fewer samples than numbers too, beyond which nothing is visible but at the end."""
    data = correlated(count, 2, 3, 3)
    view: Any = VisibleConfig(step=0.25, basis=basis).make(InMemory(data))
    x = noise(2, 3, 2, 3, 3)
    end = squares(view, x, torch.tensor([0.25, 0.1]).double())
    torch.testing.assert_close(end[..., 0], x.square().flatten(2).mean(2))
    start = squares(view, x, torch.tensor([1.0, 0.9]).double())
    gains = view.gains(torch.tensor([0.75, 0.65]).double()).flatten(1)
    if basis == "cosine":
        components = cosine_components(x).flatten(2)
    else:
        components = x.flatten(2) @ principal_axes(data)[0]
    weights = gains.square()[:, : components.shape[2]]
    expected = (components.square() * weights[:, None]).sum(2) / weights.sum(1, keepdim=True)
    torch.testing.assert_close(start[..., 0], expected)


@pytest.mark.parametrize("count", [400, 11])
def test_principal_axes_are_orthonormal_and_their_variances_are_the_samples(count: int) -> None:
    """Of more samples than numbers, and of fewer."""
    data = correlated(count, 2, 3, 3) + 4
    axes, variances = principal_axes(data)
    kept = min(18, count - 1)
    assert axes.shape == (18, kept)
    torch.testing.assert_close(axes.T @ axes, torch.eye(kept).double())
    torch.testing.assert_close((data.flatten(1) @ axes).var(0), variances)
    assert (variances.diff() <= 1e-12).all()
    torch.testing.assert_close(variances.sum(), data.flatten(1).var(0).sum())


CONFIGS: list[ViewConfig] = [
    BandsConfig(groups=2),
    VisibleConfig(samples=9),
    VisibleConfig(basis="cosine"),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.kind)
def test_a_score_of_each_view_has_its_gradient(config: ViewConfig) -> None:
    draws, target = draws_and_target(2, 3, 2, 4, 4)
    inputs = InMemory(correlated(60, 2, 4, 4))
    score = EnergyConfig(beta=1.2, views={"whole": 0.5, "mine": config}).make(inputs)
    draws.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: score(x, target, T).score(0.9), draws)
    in_float32 = score(draws.detach().float(), target.float(), T.float())
    for one, other in zip(in_float32, score(draws, target, T), strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("view", "said"),
    [
        ({"bands": {"octaves": 0}}, r"views\.bands: octaves .*0"),
        ({"bands": {"groups": 0}}, r"views\.bands: groups .*0"),
        ({"visible": {"step": 0}}, r"views\.visible: step .*0"),
        ({"visible": {"basis": "haar"}}, r"views\.visible\.basis.*principal, cosine.*haar"),
        ({"visible": {"samples": 1}}, r"views\.visible: samples .*1"),
    ],
)
def test_a_wrong_setting_is_one_sentence(view: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        build(ScoreConfig, {"views": view}, "c.yaml")


def test_a_view_of_the_data_is_not_made_without_a_training() -> None:
    with pytest.raises(ValueError, match=r"visible.*training"):
        EnergyConfig(views={"visible": 1.0}).make()
