"""Views that are made from the training's data: the same at every start, refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from test_generator_training import assert_same_files, losses
from tiny_runs import generator_config, phase

from autoencoder.store import LatentStore
from latentddm.diffusion.schedules import FlowSchedule
from latentddm.engine.config import build, load_config
from latentddm.engine.errors import UserError
from latentddm.training.config import TrainConfig
from latentddm.training.generator import train
from latentddm.training.objective import DistributionalObjective, Objective
from latentddm.training.views import TrainingInputs

EVERY: dict[str, Any] = {
    "whole": 0.25,
    "bands": {"weight": 0.25, "weight_data": 0.0, "groups": 3},
    "position": {"weight": 0.2, "share": 0.5},
    "near": {"kind": "visible", "weight": 0.1, "t_min": 0.3, "step": 0.125},
    "far": {"kind": "visible", "weight": 0.1, "basis": "cosine"},
}


def with_views(views: dict[str, Any], draws: int = 2) -> DistributionalObjective:
    objective = build(
        Objective, {"kind": "ddm", "draws": draws, "score": {"views": views}}, "c.yaml"
    )
    assert isinstance(objective, DistributionalObjective)
    return objective


def inputs_of(store: Path, seed: int) -> TrainingInputs:
    return TrainingInputs(LatentStore(store), FlowSchedule(), seed, Accelerator())


def test_latents_for_views_are_the_same_at_every_start_and_those_of_the_store(
    tiny_store: Path,
) -> None:
    first, again = (inputs_of(tiny_store, 3) for _ in range(2))
    assert torch.equal(first.latents(16), again.latents(16))
    assert not torch.equal(first.latents(16), inputs_of(tiny_store, 4).latents(16))
    everything = first.latents(10_000)
    assert len(everything) == len(first.store)
    stored = first.store.standardise(first.store.raw(0, len(first.store)))
    assert {row.sum().item() for row in everything.double()} == {
        row.sum().item() for row in stored.double()
    }


def test_a_run_with_every_view_resumes_bit_equal_and_reads_its_own_config(
    tiny_store: Path, tmp_path: Path
) -> None:
    def config(name: str, images: int) -> TrainConfig:
        return generator_config(tiny_store, tmp_path / name, phase(images, with_views(EVERY)))

    straight = train(config("straight", 32))
    train(config("stopped", 16))
    stopped = train(config("stopped", 32))
    assert_same_files(straight, stopped)
    assert losses(straight) == losses(stopped)
    again = load_config(TrainConfig, straight.config_path)
    assert again.phases == config("straight", 32).phases


def test_views_that_do_not_fit_the_latents_are_refused_before_anything_is_written(
    tiny_store: Path, tmp_path: Path
) -> None:
    objective = with_views({"bands": {"groups": 2}})
    wanted = generator_config(tiny_store, tmp_path / "run", phase(16, objective))
    with pytest.raises(UserError, match=r"phases\.0\.objective.*groups .*bands.* 2.*3 channels"):
        train(wanted)
    assert not (tmp_path / "run").exists()
