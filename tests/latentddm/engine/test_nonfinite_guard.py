"""A nonfinite loss or gradient stops every process before the weights change."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from gradient_scalers import FIRST_SCALE, emulate_gradient_scaler
from messages import assert_names, raises_naming
from tiny_training import (
    BATCH,
    Fault,
    TinyConfig,
    TinyNetwork,
    loop_config,
    start_tiny,
    train_tiny,
)

from latentddm.engine.checkpoint import newest_checkpoint
from latentddm.engine.errors import JobError
from latentddm.engine.optimizer import OptimizerConfig
from latentddm.engine.run import RunFolder
from latentddm.engine.task import whole_span
from latentddm.engine.trainable_module import TrainableModule


def config(tmp_path: Path, **loop: object) -> TinyConfig:
    return TinyConfig(output=str(tmp_path / "run"), loop=loop_config(20, **loop))


def trainable(optimizer: OptimizerConfig | None = None) -> TrainableModule:
    torch.manual_seed(0)
    loop = loop_config(20)
    return TrainableModule(
        TinyNetwork(4),
        optimizer or OptimizerConfig(),
        loop,
        whole_span(loop),
        Accelerator(cpu=True),
    )


def test_steps_that_the_gradient_scaler_skips_are_no_failure_and_count_in_no_mean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scalers = emulate_gradient_scaler(monkeypatch, overflows=5)
    run = train_tiny(config(tmp_path, log_every=4 * BATCH))
    first, *others = run.read_metrics()
    assert "gradient_norm" not in first  # four steps, all skipped
    assert len(others) == 4
    assert all(0 < line["gradient_norm"] < 10 for line in others)
    assert scalers[0].get_scale() == FIRST_SCALE / 2**5


REMEDY = "optimizer.learning_rate"


def test_a_nonfinite_loss_names_step_images_and_rank(tmp_path: Path) -> None:
    with raises_naming(JobError, "loss of rank 0", "step 7", "48 images", REMEDY):
        train_tiny(config(tmp_path), Fault(nan_at=6 * BATCH))
    checkpoint = newest_checkpoint(RunFolder(tmp_path / "run").checkpoints)
    assert checkpoint is not None
    assert checkpoint.images == 4 * BATCH


@pytest.mark.parametrize("sharded", [False, True])
def test_a_nonfinite_loss_on_one_of_two_ranks_stops_both(tmp_path: Path, sharded: bool) -> None:
    fault = Fault(nan_at=6 * BATCH, nan_rank=1)
    processes = start_tiny(2, config(tmp_path, sharded=sharded), tmp_path, fault)
    assert processes.wait(60) == [1, 1], processes.outputs()
    for output in processes.outputs():
        assert_names(output.splitlines()[-1], "loss of rank 1", "step 7", "48 images", REMEDY)


def test_weights_and_optimizer_are_unchanged_by_the_refused_step() -> None:
    trained = trainable()
    x = torch.ones(BATCH, 6)
    trained.backward(trained.wrapped(x).square().mean())
    trained.step(0)
    weights = {name: t.clone() for name, t in trained.network.state_dict().items()}
    steps = [entry["step"].clone() for entry in trained.optimizer.state.values()]
    trained.backward(trained.wrapped(x * math.inf).square().mean())
    with pytest.raises(JobError):
        trained.step(BATCH)
    for name, tensor in trained.network.state_dict().items():
        assert torch.equal(tensor, weights[name])
    assert steps == [entry["step"] for entry in trained.optimizer.state.values()]


def test_the_optimizer_skips_the_step_by_itself_before_the_host_has_the_flags(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # On CUDA the flags arrive one step later; until then `found_inf` stops the step.
    trained = trainable(OptimizerConfig(learning_rate=1.0))
    monkeypatch.setattr(trained._guard._reader, "read", lambda values, images: None)
    weights = {name: t.clone() for name, t in trained.network.state_dict().items()}
    trained.backward(trained.wrapped(torch.full((BATCH, 6), math.nan)).mean())
    trained.step(0)
    for name, tensor in trained.network.state_dict().items():
        assert torch.equal(tensor, weights[name])
    trained.backward(trained.wrapped(torch.ones(BATCH, 6)).square().mean())
    trained.step(BATCH)
    assert not torch.equal(trained.network.input.linear.weight, weights["input.linear.weight"])


def test_a_nonfinite_gradient_is_distinguished_from_a_loss() -> None:
    trained = trainable()
    trained.backward((0 * trained.wrapped(torch.ones(BATCH, 6))).square().sum().sqrt())
    with raises_naming(JobError, "gradient of all ranks", "step 2", "8 images", REMEDY):
        trained.step(BATCH)
