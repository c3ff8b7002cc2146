"""Distillation: resumes bit-equal, gives a run like any other, and refuses what is no teacher."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from messages import raises_naming
from safetensors.torch import load_file
from tiny_runs import ONE_LEVEL, PLAIN, generator_config, phase

from latentddm.cli import main
from latentddm.engine.checkpoint import newest_checkpoint
from latentddm.engine.config import load_config
from latentddm.engine.ema import EMAConfig
from latentddm.engine.errors import UserError
from latentddm.engine.optimizer import OptimizerConfig
from latentddm.engine.task import SinglePhaseConfig
from latentddm.hub.pipeline import LatentDDMPipeline
from latentddm.inference.best_settings import best_settings, write_best_settings
from latentddm.inference.generator import Generator, SamplingConfig
from latentddm.training.distillation import DistillConfig, describe, distill
from latentddm.training.generator import train


@pytest.fixture(scope="module")
def teacher(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher") / "plain"
    network = replace(ONE_LEVEL, dropout=0.1)
    return train(generator_config(tiny_store, folder, phase(16, PLAIN), network=network)).path


def config(teacher: Path, output: Path, images: int = 32) -> DistillConfig:
    return DistillConfig(
        teacher=str(teacher),
        output=str(output),
        steps=2,
        optimizer=OptimizerConfig(learning_rate=1e-3),
        loop=SinglePhaseConfig(
            images=images, batch_size=8, log_every=8, preview_every=32, checkpoint_every=16
        ),
        ema=EMAConfig(widths=(0.1,), snapshots=0),
    )


def files(run: Path) -> dict[str, dict[str, torch.Tensor]]:
    checkpoint = newest_checkpoint(run / "checkpoints")
    assert checkpoint is not None
    return {path.name: load_file(path) for path in checkpoint.path.glob("*.safetensors")}


def test_a_stopped_student_ends_bit_equal_to_one_that_was_never_stopped(
    teacher: Path, tmp_path: Path
) -> None:
    straight = distill(config(teacher, tmp_path / "straight"))
    distill(config(teacher, tmp_path / "stopped", images=16))
    stopped = distill(config(teacher, tmp_path / "stopped"))
    first, second = files(straight.path), files(stopped.path)
    names = {"network", "auxiliary", "ema", "optimizer", "auxiliary_optimizer"}
    assert set(first) == {f"{name}.safetensors" for name in names}
    for name, tensors in first.items():
        assert all(torch.equal(tensors[key], second[name][key]) for key in tensors), name
    taught = files(teacher)["ema.safetensors"]
    for name in ("network.safetensors", "auxiliary.safetensors"):
        assert any(not torch.equal(first[name][key], taught[key]) for key in taught), name
    line = straight.read_metrics()[-1]
    assert {"loss", "moment_gap", "gradient_norm", "auxiliary_gradient_norm"} <= set(line)
    assert list(straight.samples.glob("*.png"))


def test_the_student_is_a_run_like_any_other(teacher: Path, tmp_path: Path) -> None:
    student = Generator.load(distill(config(teacher, tmp_path / "student", images=8)).path)
    assert student.space == Generator.load(teacher).space
    assert student.network.config["dropout"] == 0.0
    assert not student.reads_xi
    drawn = student.draw(3, SamplingConfig(steps=2, churn=1.0))
    assert bool(drawn.isfinite().all())


def test_the_student_is_sampled_and_exported_by_its_own_steps_and_churn(
    teacher: Path, tmp_path: Path
) -> None:
    run = distill(config(teacher, tmp_path / "student", images=8)).path
    assert best_settings(run, 0) == {2: SamplingConfig(steps=2, churn=1.0)}
    assert main(["sample", str(run), "--num", "2", "--output", str(tmp_path / "own")]) == 0
    settings = json.loads((tmp_path / "own" / "samples.json").read_text())
    assert (settings["steps"], settings["churn"]) == (2, 1.0)
    assert main(["export", str(run), str(tmp_path / "export")]) == 0
    pipeline = LatentDDMPipeline.from_pretrained(tmp_path / "export")
    assert pipeline.scheduler.config["churn"] == 1.0
    # Measured settings stay when the distillation is run again.
    measured = {2: SamplingConfig(steps=2, churn=0.5)}
    write_best_settings(run, 0, "fid", measured)
    distill(config(teacher, run, images=8))
    assert best_settings(run, 0) == measured


def test_a_teacher_that_draws_is_refused(teacher: Path, tiny_store: Path, tmp_path: Path) -> None:
    ddm = train(generator_config(tiny_store, tmp_path / "ddm", phase(8, PLAIN), phase(8)))
    with pytest.raises(UserError, match="no run of plain diffusion"):
        distill(config(ddm.path, tmp_path / "student"))
    with pytest.raises(UserError, match="no valid checkpoint at 7 images, but 16"):
        distill(replace(config(teacher, tmp_path / "student"), teacher_images=7))
    assert not (tmp_path / "student").exists()


def test_a_student_or_a_teacher_without_a_mean_at_the_first_step_is_refused(
    teacher: Path, tiny_store: Path, tmp_path: Path
) -> None:
    student = distill(config(teacher, tmp_path / "student", images=8)).path
    with raises_naming(UserError, str(student), "distilled student", str(teacher)):
        distill(config(student, tmp_path / "second"))
    network = replace(ONE_LEVEL, prediction="eps")
    eps = generator_config(tiny_store, tmp_path / "eps", phase(8, PLAIN), network=network)
    with raises_naming(UserError, str(tmp_path / "eps"), "prediction eps", "t = 1"):
        distill(config(train(eps).path, tmp_path / "second"))
    assert not (tmp_path / "second").exists()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"ema": EMAConfig(widths=())}, ["ema.widths"]),
        ({"network": replace(ONE_LEVEL, channels=32)}, ["network, and", "leave them out"]),
        ({"schedule": "cosine", "label_dropout": 0.5}, ["schedule, label_dropout", "leave them"]),
    ],
)
def test_keys_that_no_student_has_are_refused_before_anything_is_written(
    teacher: Path, tmp_path: Path, changes: dict[str, Any], named: list[str]
) -> None:
    with raises_naming(UserError, *named):
        distill(replace(config(teacher, tmp_path / "student"), **changes))
    assert not (tmp_path / "student").exists()


def test_the_config_that_a_student_leaves_resumes_it(teacher: Path, tmp_path: Path) -> None:
    run = distill(config(teacher, tmp_path / "student", images=8))
    again = load_config(DistillConfig, run.config_path, ["loop.images=16"])
    assert newest_checkpoint(distill(again).checkpoints).images == 16


def test_a_dry_run_says_what_would_be_done_and_touches_nothing(
    teacher: Path, tmp_path: Path
) -> None:
    text = describe(config(teacher, tmp_path / "student"))
    assert "teacher_images: 16" in text
    assert "parameters each" in text
    assert not (tmp_path / "student").exists()
