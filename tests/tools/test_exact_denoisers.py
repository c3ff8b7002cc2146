"""The exact denoisers are exact: posteriors by hand, and the data come back at any step count."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest
import torch

from latentddm.diffusion.process import posterior_weights
from latentddm.diffusion.sampling import time_grid

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(TOOLS))
    return importlib.import_module("exact_denoisers")


def two_points() -> torch.Tensor:
    return torch.tensor([[1.0, 2.0], [-1.0, 0.5]]).reshape(2, 2, 1, 1)


def test_the_mean_is_that_of_bayes(tool: ModuleType) -> None:
    data, t = two_points(), 0.4
    x_t = torch.tensor([0.3, 0.7]).reshape(1, 2, 1, 1)
    gaps = (x_t - (1 - t) * data).flatten(1).double().square().sum(1)
    likelihood = torch.exp(-gaps / (2 * t**2))
    weights = likelihood / likelihood.sum()
    mean = (weights[:, None] * data.flatten(1)).sum(0)
    denoiser = tool.ExactDenoiser(data, draws=False)
    found = denoiser(x_t, torch.tensor([t]), torch.zeros_like(x_t))
    torch.testing.assert_close(found.flatten().double(), mean, rtol=1e-6, atol=1e-6)


def test_draws_have_the_frequencies_of_the_weights(tool: ModuleType) -> None:
    denoiser, generator = tool.ExactDenoiser(two_points(), draws=True), torch.Generator()
    x_t = torch.tensor([0.1, 1.2]).reshape(1, 2, 1, 1).expand(20_000, -1, -1, -1)
    xi = torch.randn(x_t.shape, generator=generator.manual_seed(0))
    drawn = denoiser(x_t, torch.full((20_000,), 0.8), xi)
    expected = posterior_weights(x_t[:1], 0.8, two_points())[0, 0]
    assert abs((drawn[:, 0] > 0).double().mean() - expected).item() < 4 * 0.5 / 20_000**0.5


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_draws_bring_back_the_data_in_any_number_of_steps(tool: ModuleType, steps: int) -> None:
    times = time_grid(steps)
    drawn = tool.draw(tool.ExactDenoiser(two_points(), draws=True), 4000, times, "ddim", seed=1)
    first = (drawn == two_points()[0]).flatten(1).all(1)
    second = (drawn == two_points()[1]).flatten(1).all(1)
    assert bool((first | second).all())
    assert abs(first.double().mean().item() - 0.5) < 4 * 0.5 / 4000**0.5


def test_it_runs_on_a_store(
    tool: ModuleType, tiny_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--images", "32", "--samples", "16", "--evaluations", "1,2"]
    assert tool.main([str(tiny_store), *options]) == 0
    said = capsys.readouterr().out
    assert "32 latents; 16 samples against 32 of them" in said
    assert all(
        f"{name}, {steps} evaluations" in said for name in ("mean", "draw") for steps in (1, 2)
    )


def test_a_missing_store_is_one_sentence(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tool.main([str(tmp_path / "none")]) == 2
    assert "none" in capsys.readouterr().err
