"""A score by config: numbers over time, wrong ones refused by name, one more score by a line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import pytest
import torch
from score_definitions import by_loops, draws_and_target, norm
from torch import Tensor

from latentddm.engine.config import build, to_plain
from latentddm.engine.errors import UserError
from latentddm.scores import SCORES, EnergyConfig, KernelConfig, ScoreConfig

T = torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64)


def make(**values: Any) -> ScoreConfig:
    return build(ScoreConfig, values, "c.yaml", "phases.1.objective.score.")


def test_the_default_is_the_energy_score_half_whole_half_position() -> None:
    config = make()
    assert isinstance(config, EnergyConfig)
    assert to_plain(config) == {
        "kind": "energy",
        "lam": 1.0,
        "lam_data": None,
        "views": {"whole": 0.5, "position": 0.5},
        "beta": 1.0,
        "beta_data": None,
    }
    assert next(iter(SCORES)) == "energy"


def test_a_kernel_can_be_chosen_and_comes_back_from_its_plain_form() -> None:
    config = make(kind="kernel", kernel="imq", bandwidth=0.5, lam_data=0.0, views={"whole": 1})
    assert config == KernelConfig(kernel="imq", bandwidth=0.5, lam_data=0.0, views={"whole": 1.0})
    assert build(ScoreConfig, to_plain(config), "config.yaml") == config


@pytest.mark.parametrize("kind", list(SCORES))
def test_lambda_runs_from_data_to_noise(kind: str) -> None:
    """iDDM: lambda = lambda_max t."""
    linear = make(kind=kind, lam=0.8, lam_data=0.0).make().lam_at(T)
    assert torch.as_tensor(linear).tolist() == pytest.approx([0.0, 0.2, 0.8], abs=1e-12)
    assert make(kind=kind, lam=0.6).make().lam_at(T) == 0.6


def test_beta_runs_from_data_to_noise() -> None:
    """iDDM: beta = 2 - (2 - beta_min) t."""
    config = EnergyConfig(beta=0.1, beta_data=2.0, views={"whole": 1.0})
    draws, target = draws_and_target(3, 2, 3, 1, 1)
    found = config.make()(draws, target, T).score(0.5)
    for i, beta in enumerate([2.0, 2 - 1.9 * 0.25, 0.1]):

        def distance(x: Tensor, y: Tensor, beta: float = beta) -> float:
            return (norm(x, y) / 3**0.5) ** beta

        expected = by_loops(draws[i], target[i], distance, 0.5)
        assert float(found[i]) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"kind": "log"}, r"'phases\.1\.objective\.score\.kind' .*energy, kernel.*'log'"),
        ({"beta": 0.0}, r"score: beta .*0\.0"),
        ({"beta_data": 2.5}, r"score: beta_data .*2\.5"),
        ({"lam": 1.5}, r"score: lam .*1\.5"),
        ({"lam_data": -0.1}, r"score: lam_data .*-0\.1"),
        ({"views": {"whol": 1}}, r"score: views.*'whol'.*whole, position"),
        ({"views": {"whole": -1}}, r"score: views\.whole .*-1"),
        ({"views": {"whole": 0}}, "score: views .*0"),
        ({"views": {}}, "score: views .*0"),
        ({"kind": "kernel", "beta": 1.0}, r"unknown key 'phases\.1\.objective\.score\.beta'"),
        ({"kind": "kernel", "bandwidth": -1}, r"score: bandwidth .*-1"),
    ],
)
def test_a_wrong_number_is_refused_by_its_name(values: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        make(**values)


@dataclass(frozen=True, kw_only=True)
class LogisticConfig(ScoreConfig):
    """d = log(1 + scale r^2): a score that is not among ours (a conditionally negative kernel)."""

    kind: Literal["logistic"] = "logistic"
    scale: float = 1.0

    def distance(self, mean_squares: Tensor, t: Tensor) -> Tensor:
        return torch.log1p(self.scale * mean_squares)


def test_one_more_score_is_a_class_and_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SCORES, "logistic", LogisticConfig)
    config = make(kind="logistic", scale=2.0, lam=0.7, views={"whole": 1.0})
    score = config.make()
    draws, target = draws_and_target(3, 4, 2, 2, 2)
    found = score(draws, target, T).score(score.lam_at(T))

    def distance(x: Tensor, y: Tensor) -> float:
        return float(torch.log(1 + 2 * (x - y).square().mean()))

    expected = [by_loops(one, y, distance, 0.7) for one, y in zip(draws, target, strict=True)]
    assert found.tolist() == pytest.approx(expected, abs=1e-12)
