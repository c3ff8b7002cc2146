"""The toy's truths are true, its measures tell good from bad, and it ends with sane figures."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from latentddm.engine.errors import UserError
from latentddm.evaluation.distances import mmd2

TOOLS = Path(__file__).parents[2] / "tools"
PICTURES = ("samples.png", "posterior.png", "spread.png")


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(TOOLS))
    return importlib.import_module("toy2d")


@pytest.fixture
def measures(toy: ModuleType) -> ModuleType:
    return importlib.import_module("toy2d_measures")


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def moments(points: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted mean [2] and covariance [2, 2]."""
    mean = weights @ points
    centred = points - mean
    return mean, (weights[:, None] * centred).T @ centred


@pytest.mark.parametrize("name", ["mixture", "checkerboard"])
@pytest.mark.parametrize("time", [0.25, 0.6, 0.95, 1.0])
def test_exact_posterior_agrees_with_importance_sampling(
    name: str, time: float, toy: ModuleType, measures: ModuleType
) -> None:
    target, generator = toy.TARGETS[name], random(1)
    prior = target.sample(200_000, generator)
    x_t, t = measures.noised(target, time, 3, generator)
    drawn = target.posterior(x_t, t, 20_000, generator)
    for place, draws in zip(x_t, drawn, strict=True):
        residual = (place - (1 - time) * prior) / time
        weights = torch.softmax(-residual.square().sum(1) / 2, dim=0)
        mean, covariance = moments(prior, weights)
        own_mean, own_covariance = moments(draws, torch.full((20_000,), 1 / 20_000).double())
        effective = min(20_000, float(1 / weights.square().sum()))
        error = 6 * target.scale / effective**0.5  # six standard errors of a coordinate's mean
        torch.testing.assert_close(own_mean, mean, atol=error, rtol=0)
        torch.testing.assert_close(
            own_covariance, covariance, atol=2 * error * target.scale, rtol=0
        )


def test_checkerboard_posterior_never_leaves_the_squares(
    toy: ModuleType, measures: ModuleType
) -> None:
    board = toy.TARGETS["checkerboard"]
    x_t, t = measures.noised(board, 0.05, 200, random())
    x_t[0], x_t[1] = torch.tensor([9.0, -9.0]), torch.tensor([-0.999, 40.0])  # far off the board
    drawn = board.posterior(x_t, t, 50, random())
    assert drawn.abs().max() <= 1
    drawn, x_t = drawn[2:], x_t[2:]
    assert ((((drawn + 1) * 2).floor().sum(2) % 2) == 0).all()
    assert (drawn - x_t[:, None] / 0.95).abs().max() < 8 * 0.05 / 0.95


@pytest.mark.parametrize("name", ["mixture", "checkerboard"])
def test_measures_tell_a_perfect_sampler_from_a_mean(
    name: str, toy: ModuleType, measures: ModuleType
) -> None:
    target = toy.TARGETS[name]
    sizes = measures.Sizes(
        evaluations=(1, 2, 5), samples=1000, repetitions=2, conditions=40, draws=200
    )

    def perfect(x_t: Tensor, t: Tensor, xi: Tensor) -> Tensor:
        seed = int(xi[0, 0].abs() * 1e6)
        return target.posterior(x_t.double(), t.double(), 1, random(seed))[:, 0].float()

    def mean(x_t: Tensor, t: Tensor, xi: Tensor) -> Tensor:
        return target.posterior(x_t.double(), t.double(), 64, random()).mean(1).float()

    for row in measures.posterior_distances(target, perfect, sizes, seed=0):
        assert abs(row["ratio"]) < 0.02
    for row in measures.posterior_distances(target, mean, sizes, seed=0):
        assert 0.5 < row["ratio"] < 1.5
    for row in measures.posterior_spread(target, perfect, sizes, seed=0):
        assert row["DDM"] == pytest.approx(row["exact"], rel=0.1)

    rows, points = measures.squared_mmds(target, {"A": perfect, "B": mean}, sizes, seed=0)
    assert set(points) == {(model, steps) for model in "AB" for steps in (1, 2, 5)}
    for row in rows:
        assert row["A"] < 2 * row["target"] < row["B"]


def test_plain_network_ignores_xi_and_the_ddm_does_not(toy: ModuleType) -> None:
    x_t, t = torch.randn(5, 2, generator=random()), torch.full((5,), 0.5)
    xi = torch.randn(5, 8, 2, generator=random())
    plain, ddm = (toy.ToyDenoiser(1.0, draws_from_noise=draws) for draws in (False, True))
    assert ddm(x_t, t, xi).shape == (5, 8, 2)
    assert ddm(x_t, t, xi).std(dim=1).min() > 0
    torch.testing.assert_close(plain.denoise(x_t, t, xi[:, 0]), plain.denoise(x_t, t, xi[:, 1]))


def test_quick_run_writes_its_files_and_few_steps_are_better_than_diffusions(
    toy: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--quick", "--target", "mixture", "--output", str(tmp_path / "out")]
    assert toy.main(arguments) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("table.json", "networks"),
        *PICTURES,
    }
    assert "mixture: squared MMD" in capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "table.json").read_text())["targets"]["mixture"]
    at = {(row["bandwidth"], row["nfe"]): row for row in report["squared_mmd"]}
    assert at[1.0, 2]["DDM"] < 0.2 * at[1.0, 2]["diffusion"]
    assert at[1.0, 1]["DDM"] < 0.1 * at[1.0, 1]["diffusion"]
    for rival in ("shortcut", "mean flow", "inductive"):
        assert at[1.0, 1][rival] < 0.4 * at[1.0, 1]["diffusion"]
        assert at[1.0, 2][rival] < 0.5 * at[1.0, 2]["diffusion"]
    assert all(row["ratio"] < 0.3 for row in report["posterior"])
    wide = report["spread"][-1]  # t = 1: the posterior is the target
    assert wide["DDM"] == pytest.approx(wide["exact"], rel=0.15)


def test_a_network_is_trained_once(toy: ModuleType, tmp_path: Path) -> None:
    target, training = toy.TARGETS["mixture"], toy.Training(points=2048, warmup_points=512)
    first, took = toy.train_once(tmp_path, target, "mean flow", training, seed=0)
    second, took_again = toy.train_once(tmp_path, target, "mean flow", training, seed=0)
    assert took_again == took
    for name, values in first.state_dict().items():
        assert torch.equal(values, second.state_dict()[name])
    longer = replace(training, points=4096)
    with pytest.raises(UserError, match=r"mixture-mean-flow-0.*another training"):
        toy.train_once(tmp_path, target, "mean flow", longer, seed=0)


def test_every_model_may_train_as_long_as_the_slowest(
    toy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, training, sizes = toy.TARGETS["mixture"], *toy.QUICK
    training = replace(training, points=2050, warmup_points=512)  # no whole number of batches
    sizes = replace(sizes, evaluations=(2,), samples=64)
    trained: list[tuple[str, int]] = []
    training_module = importlib.import_module("toy2d_training")

    def train_once(folder: Path, target: Any, name: str, training: Any, seed: int) -> Any:
        trained.append((name, training.points))
        seconds = {"DDM": 8.0, "mean flow": 4.0}.get(name, 2.0) * (training.points // 512) / 4
        network = training_module.make_network(target, toy.MODELS[name])
        return network, {"seconds": 1.0, "cpu_seconds": seconds}

    monkeypatch.setattr(toy, "train_once", train_once)
    took = {name: train_once(tmp_path, target, name, training, 0)[1] for name in toy.MODELS}
    trained.clear()
    report = toy.by_seconds(tmp_path, target, training, took, sizes, seed=0)
    assert dict(trained) == {
        "diffusion": 8192,
        "DDM": 2050,  # the training of the first table
        "shortcut": 8192,
        "mean flow": 4096,
        "inductive": 8192,
    }
    assert {spent["cpu_seconds"] for spent in report["training"].values()} == {8.0}
    assert {*toy.MODELS, "target"} < set(report["squared_mmd"][0])
    tables = importlib.import_module("toy2d_tables")
    whole = {**report, "posterior": [], "equal_seconds": report}
    assert "after as many seconds" in tables.table("mixture", whole, tables.deviations([whole] * 2))


def test_figures_over_seeds_are_means_and_deviations(toy: ModuleType) -> None:
    tables = importlib.import_module("toy2d_tables")

    def report(value: float) -> dict[str, object]:
        return {
            "squared_mmd": [{"bandwidth": 1.0, "nfe": 2, "DDM": value, "target": 2e-4}],
            "posterior": [{"t": 0.2, "DDM": value, "mean": 0.5, "ratio": 2 * value}],
            "training": {"DDM": {"seconds": 3.0, "cpu_seconds": 2.0}},
        }

    reports = [report(1e-3), report(3e-3)]
    mean, deviation = tables.means(reports), tables.deviations(reports)
    assert mean["squared_mmd"][0]["DDM"] == pytest.approx(2e-3)
    assert deviation["squared_mmd"][0]["DDM"] == pytest.approx(2**0.5 * 1e-3)
    text = tables.table("mixture", mean, deviation)
    assert "2.00e-03 ± 1e-03" in text
    assert "ratio 0.40% ± 0.28%" in text
    assert tables.deviations(reports[:1]) is None
    assert "±" not in tables.table("mixture", tables.means(reports[:1]))


def test_impossible_numbers_are_refused_in_one_sentence(
    toy: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert toy.main(["--points", "3", "--output", str(tmp_path)]) == 2
    assert "--points" in capsys.readouterr().err
    for option in ("--evaluations", "--repetitions", "--processes"):
        assert toy.main([option, "0", "--output", str(tmp_path)]) == 2
        assert option in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("bandwidth", [1.0, 0.25])
def test_the_distance_that_keeps_what_is_shared_is_the_biased_mmd(
    measures: ModuleType, bandwidth: float
) -> None:
    truth, points = torch.randn(2, 300, 2, generator=torch.Generator().manual_seed(0))
    expected = mmd2(points, truth, "rbf", bandwidth, unbiased=False)
    found = measures.DistanceTo(truth, bandwidth)(points)
    assert found == pytest.approx(expected, abs=1e-12)
