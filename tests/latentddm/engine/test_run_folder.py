"""A config with which nothing was trained gives way to the next one, and no other does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from accelerate import Accelerator
from messages import raises_naming
from tiny_training import BATCH, TinyConfig, logged, loop_config, train_tiny

from latentddm.engine.distributed import exclusive, start_processes, start_run
from latentddm.engine.errors import UserError
from latentddm.engine.run import RunFolder


def config(folder: Path, **changes: object) -> TinyConfig:
    return replace(TinyConfig(output=str(folder), loop=loop_config(4)), **changes)  # type: ignore[arg-type]


def begun(folder: Path, kind: str = "tiny", **changes: object) -> RunFolder:
    """A training that ended before its first step."""
    return start_run(folder, kind, config(folder, **changes))[0]


def test_a_corrected_config_replaces_one_that_never_trained(tmp_path: Path) -> None:
    refused = config(tmp_path / "run", loop=loop_config(4, micro_batches=3))
    with pytest.raises(UserError, match=r"loop\.micro_batches is 3"):
        train_tiny(refused)
    (tmp_path / "run" / "latents.json").write_text("{}")  # of the old config
    run = train_tiny(config(tmp_path / "run", seed=3))
    assert run.read_config()["seed"] == 3
    assert not (run.path / "latents.json").exists()
    assert len(logged(run)) == 4


@pytest.mark.parametrize(
    "left", ["checkpoints/images-000000000008", "ema/images.safetensors", "samples/a.png"]
)
def test_a_folder_that_holds_work_keeps_its_config(tmp_path: Path, left: str) -> None:
    """Readable or not."""
    run = begun(tmp_path / "run")
    (run.path / left).write_text("work")
    with raises_naming(UserError, str(run.path), "differs in: seed)", "another output"):
        begun(run.path, seed=3)
    assert run.read_config()["seed"] == 0


def test_a_logged_step_or_another_kind_keeps_its_config(tmp_path: Path) -> None:
    logged_once, demo = begun(tmp_path / "logged"), begun(tmp_path / "demo", kind="demo")
    logged_once.log_metrics(BATCH, {"loss": 1.0})
    for run in (logged_once, demo):
        with raises_naming(UserError, str(run.path), "seed", "another output"):
            begun(run.path, seed=3)
    # Only trainings give way: what begins a folder by itself knows what is in it.
    with raises_naming(UserError, str(demo.path), "seed"):
        RunFolder.create(demo.path, "demo", config(demo.path, seed=3))


def test_a_run_that_another_command_is_about_to_train_keeps_its_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latentddm.engine.distributed.LOCK_TIMEOUT", 0)
    run = begun(tmp_path / "run")
    with (
        exclusive(run, Accelerator()),
        raises_naming(UserError, str(run.path), "Another process is training"),
    ):
        begun(run.path, seed=3)
    assert run.read_config()["seed"] == 0


def test_a_command_whose_config_was_replaced_before_its_lock_trains_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = begun(tmp_path / "run")
    second = begun(first.path, seed=3)
    with (
        raises_naming(UserError, str(first.path), "differs in: seed)"),
        exclusive(first, Accelerator()),
    ):
        pytest.fail("The lock was given.")
    with exclusive(second, Accelerator()):  # which it has left
        pass


def test_a_refused_command_leaves_the_config_of_a_training_that_goes_on(tmp_path: Path) -> None:
    """It would be in the checkpoints of the other: also what may change, once the lock is held."""
    first = begun(tmp_path / "run")
    longer = replace(config(first.path), loop=loop_config(8))
    second, _ = start_run(first.path, "tiny", longer, may_change=("loop.images",))
    before = first.read_config()["loop"]["images"]
    with exclusive(second, Accelerator()):
        assert first.read_config()["loop"]["images"] == 8 * BATCH != before
    third, _ = start_run(first.path, "tiny", config(first.path), may_change=("loop.images",))
    assert third.read_config()["loop"]["images"] == 8 * BATCH


def test_trainings_of_other_precisions_follow_each_other_in_one_process() -> None:
    for precision in ("no", "bf16", "no"):
        assert start_processes(precision).mixed_precision == precision


def test_a_batch_that_the_processes_do_not_divide_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Accelerator, "num_processes", 3)
    with raises_naming(UserError, "loop.batch_size is 8", "3 processes"):
        start_run(tmp_path / "run", "tiny", config(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
