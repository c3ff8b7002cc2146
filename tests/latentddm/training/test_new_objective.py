"""One more objective is one class and one line: it is chosen by a config, trained and sampled."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
import torch
from tiny_runs import generator_config
from torch import Tensor

from latentddm.diffusion.schedules import Schedule
from latentddm.engine.config import build, to_plain
from latentddm.inference.generator import Generator
from latentddm.training.config import TrainConfig
from latentddm.training.generator import train
from latentddm.training.objective import OBJECTIVES, Objective, ObjectiveTerms


@dataclass(frozen=True, kw_only=True)
class HuberObjective(Objective):
    """Plain diffusion by Huber's loss in the place of the squared error."""

    kind: Literal["huber"] = "huber"
    delta: float = 0.5

    def terms(self, drawn: Tensor, x0: Tensor, t: Tensor, schedule: Schedule) -> ObjectiveTerms:
        error = torch.nn.functional.huber_loss(drawn, x0, reduction="none", delta=self.delta)
        error = error.flatten(1).mean(1)
        return ObjectiveTerms(error, error.detach(), 0 * error.detach(), 0 * error.detach())


def test_one_more_objective_is_one_class_and_one_line(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(OBJECTIVES, "huber", HuberObjective)  # the line
    values = to_plain(generator_config(tiny_store, tmp_path / "run"))
    values["phases"] = [
        {"images": 8, "objective": {"kind": "huber", "delta": 0.1}},
        {"images": 8, "objective": {"kind": "ddm", "draws": 2}},
    ]
    config = build(TrainConfig, values, "the test")
    assert config.phases[0].objective == HuberObjective(delta=0.1)
    run = train(config)
    assert [line["images"] for line in run.read_metrics()] == [8, 16]
    assert Generator.load(run.path).reads_xi
    assert not Generator.load(run.path, images=8).reads_xi
