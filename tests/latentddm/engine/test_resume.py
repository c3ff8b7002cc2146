"""A run that was killed, stopped or moved to more processes ends like an undisturbed one."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from gradient_scalers import FIRST_SCALE, emulate_gradient_scaler
from learning_rates import record_learning_rates
from messages import assert_names, raises_naming
from processes import Processes
from tiny_training import (
    BATCH,
    Fault,
    TinyConfig,
    TinyTask,
    final_tensors,
    logged,
    loop_config,
    start_tiny,
    train_tiny,
)

from latentddm.engine.checkpoint import newest_checkpoint
from latentddm.engine.distributed import exclusive
from latentddm.engine.ema import EMAConfig
from latentddm.engine.errors import Interrupted, JobError, UserError
from latentddm.engine.run import RunFolder
from latentddm.engine.seeding import RANDOM_FORMAT

STEPS = 40


def config(tmp_path: Path, name: str, **loop: object) -> TinyConfig:
    return TinyConfig(output=str(tmp_path / name), loop=loop_config(STEPS, **loop))


def assert_same_run(first: RunFolder, second: RunFolder) -> None:
    a, b = final_tensors(first), final_tensors(second)
    assert set(a) == set(b)
    for name in a:
        assert torch.equal(a[name], b[name]), name
    assert logged(first) == logged(second)


def assert_close_run(first: RunFolder, second: RunFolder) -> None:
    """The same images in the same batches, and losses within 1e-5."""
    assert len(logged(first)) == len(logged(second)) == STEPS
    for a, b in zip(logged(first), logged(second), strict=True):
        assert (a["position"], a["position_squared"]) == (b["position"], b["position_squared"])
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert a["gradient_norm"] == pytest.approx(b["gradient_norm"], rel=1e-4)


def kill_after(processes: Processes, run: RunFolder, steps: int) -> None:
    processes.wait_for(run.metrics_path, f'"images": {steps * BATCH},')
    processes.kill()


def test_a_run_killed_after_17_of_40_steps_ends_bit_equal(tmp_path: Path) -> None:
    straight = train_tiny(config(tmp_path, "straight"))
    killed = config(tmp_path, "killed")
    run = RunFolder(Path(killed.output))
    kill_after(start_tiny(1, killed, tmp_path, Fault(slow=0.05)), run, 17)
    assert newest_checkpoint(run.checkpoints).images < STEPS * BATCH
    train_tiny(killed)
    assert_same_run(straight, run)


def test_two_processes_see_the_images_of_one_and_resume_exactly(tmp_path: Path) -> None:
    one = train_tiny(config(tmp_path, "one"))
    two = config(tmp_path, "two")
    start_tiny(2, two, tmp_path).finish()
    assert_close_run(one, RunFolder(Path(two.output)))

    killed = config(tmp_path, "killed")
    run = RunFolder(Path(killed.output))
    kill_after(start_tiny(2, killed, tmp_path, Fault(slow=0.05)), run, 17)
    assert newest_checkpoint(run.checkpoints).images < STEPS * BATCH
    start_tiny(2, killed, tmp_path).finish()
    assert_same_run(RunFolder(Path(two.output)), run)


def test_two_processes_of_which_one_vanishes_both_end_and_resume_exactly(tmp_path: Path) -> None:
    straight = config(tmp_path, "straight")
    start_tiny(2, straight, tmp_path).finish()
    killed = config(tmp_path, "killed")
    run = RunFolder(Path(killed.output))
    processes = start_tiny(2, killed, tmp_path, Fault(slow=0.05))
    processes.wait_for(run.metrics_path, f'"images": {17 * BATCH},')
    processes.started[1].kill()
    survivor, vanished = processes.wait(60)
    assert (survivor, vanished) == (1, -signal.SIGKILL)  # it does not wait for ever
    sentence = processes.outputs()[0].splitlines()[-1]
    assert_names(sentence, "connection", "another process", "same command again")
    start_tiny(2, killed, tmp_path).finish()
    assert_same_run(RunFolder(Path(straight.output)), run)


@pytest.mark.slow
def test_one_process_resumes_from_two_and_from_sharded_weights(tmp_path: Path) -> None:
    one = train_tiny(config(tmp_path, "one"))
    for name, changes in (("whole", {}), ("sharded", {"sharded": True})):
        half = config(tmp_path, name)
        half = replace(half, loop=replace(half.loop, images=20 * BATCH, **changes))
        half = replace(half, optimizer=replace(half.optimizer, decay="constant"))
        start_tiny(2, half, tmp_path).finish()
        run = RunFolder(Path(half.output))
        assert set(final_tensors(run)) == set(final_tensors(one))
        assert {t.shape for t in final_tensors(run).values()} == {
            t.shape for t in final_tensors(one).values()
        }
    constant = config(tmp_path, "constant")
    constant = replace(constant, optimizer=replace(constant.optimizer, decay="constant"))
    reference = train_tiny(constant)
    for name in ("whole", "sharded"):
        rest = replace(constant, output=str(tmp_path / name))
        assert_close_run(reference, train_tiny(rest))
    back = replace(constant, output=str(tmp_path / "whole"))
    back = replace(back, loop=replace(back.loop, images=(STEPS + 2) * BATCH, sharded=True))
    start_tiny(2, back, tmp_path).finish()


def test_micro_batches_change_nothing_but_memory(tmp_path: Path) -> None:
    one = train_tiny(config(tmp_path, "one"))
    assert_close_run(one, train_tiny(config(tmp_path, "parts", micro_batches=4)))
    with raises_naming(UserError, "loop.micro_batches is 3", "8 images", "loop.batch_size"):
        train_tiny(config(tmp_path, "odd", micro_batches=3))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_saves_and_the_same_command_resumes(
    tmp_path: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = train_tiny(config(tmp_path, "straight"))
    stopped = config(tmp_path, "stopped", checkpoint_every=1000 * BATCH)
    log_metrics, run = RunFolder.log_metrics, RunFolder(Path(stopped.output))

    def signal_at_step_13(self: RunFolder, images: int, metrics: dict[str, float]) -> None:
        log_metrics(self, images, metrics)
        if images == 13 * BATCH:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    monkeypatch.setattr(RunFolder, "log_metrics", signal_at_step_13)
    with pytest.raises(Interrupted) as caught:
        train_tiny(stopped)
    assert caught.value.signal_number == number
    assert_names(str(caught.value), number.name, "saved after 112 of 320", "the same command")
    assert signal.getsignal(number) is before
    assert newest_checkpoint(run.checkpoints).images == 14 * BATCH
    train_tiny(stopped)
    assert_same_run(straight, run)


def test_a_signal_to_one_of_two_processes_stops_both_in_one_step(tmp_path: Path) -> None:
    stopped = config(tmp_path, "run", checkpoint_every=1000 * BATCH)
    processes = start_tiny(2, stopped, tmp_path, Fault(slow=0.05))
    processes.wait_for(Path(stopped.output) / "metrics.jsonl", f'"images": {5 * BATCH},')
    os.kill(processes.started[1].pid, signal.SIGTERM)
    assert processes.wait(60) == [128 + signal.SIGTERM] * 2, processes.outputs()
    first, second = (output.splitlines()[-1] for output in processes.outputs())
    assert first == second
    assert_names(first, "Interrupted", "SIGTERM", "saved after", "the same command")


def test_a_failed_save_on_the_main_process_ends_all_with_its_error(tmp_path: Path) -> None:
    failing = config(tmp_path, "run")
    run = RunFolder.create(Path(failing.output), "tiny", failing)
    run.checkpoints.write_text("not a folder")
    processes = start_tiny(2, failing, tmp_path)
    assert processes.wait(60) == [1, 1], processes.outputs()
    first, second = (output.splitlines()[-1] for output in processes.outputs())
    assert first == second
    assert_names(first, "JobError", str(run.checkpoints))


def test_two_commands_cannot_train_one_run_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would write the same checkpoints and metrics in turn."""
    monkeypatch.setattr("latentddm.engine.distributed.LOCK_TIMEOUT", 0)
    first = config(tmp_path, "run")
    run = train_tiny(first)
    longer = replace(first, loop=replace(first.loop, images=first.loop.images + BATCH))
    with (
        exclusive(run, Accelerator()),
        raises_naming(UserError, str(run.path), "wait for it", "another output"),
    ):
        train_tiny(longer)
    train_tiny(longer)
    assert newest_checkpoint(run.checkpoints).images == longer.loop.images


def test_a_checkpoint_of_another_run_is_refused_with_the_key_that_differs(tmp_path: Path) -> None:
    train_tiny(config(tmp_path, "first"))
    other = replace(config(tmp_path, "second"), seed=3)
    (tmp_path / "second").mkdir()
    run = RunFolder.create(tmp_path / "second", "tiny", other)
    (tmp_path / "first" / "checkpoints").rename(run.checkpoints)
    with raises_naming(UserError, str(run.checkpoints), "differs in: seed)", "remove it"):
        train_tiny(other)


def test_a_run_begun_with_other_random_numbers_is_refused_until_it_is_finished(
    tmp_path: Path,
) -> None:
    """It must not go on in silence on other numbers; a finished one is loaded as ever."""
    run = train_tiny(config(tmp_path, "run"))
    for path in run.checkpoints.glob("*/state.json"):
        state = json.loads(path.read_text())
        assert state.pop("random_format") == RANDOM_FORMAT
        path.write_text(json.dumps(state))
    trained = final_tensors(run)
    train_tiny(config(tmp_path, "run"))  # finished: nothing is drawn
    longer = config(tmp_path, "run")
    longer = replace(longer, loop=replace(longer.loop, images=(STEPS + 2) * BATCH))
    with raises_naming(
        UserError, str(run.checkpoints), "version 1", "version 2", "release that began it", "start="
    ):
        train_tiny(longer)
    assert all(torch.equal(trained[name], tensor) for name, tensor in final_tensors(run).items())


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_from_scratch(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = train_tiny(config(tmp_path, "run"))
    for weights in run.checkpoints.glob("*/network.safetensors"):
        weights.write_bytes(weights.read_bytes()[:-1])
    with (
        caplog.at_level(logging.WARNING, "latentddm"),
        raises_naming(
            UserError, "None of the 2", str(run.checkpoints), "network.safetensors", "restore one"
        ),
    ):
        train_tiny(config(tmp_path, "run"))


@pytest.mark.parametrize("border", [None, 18 * BATCH])
def test_a_finished_run_that_is_started_again_has_its_trained_weights(
    tmp_path: Path, border: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may be exported again afterwards, as the autoencoder's are."""
    finished = replace(config(tmp_path, "run"), border=border)
    trained = final_tensors(train_tiny(finished))
    made: list[TinyTask] = []
    create = TinyTask.__init__

    def record(self: TinyTask, *arguments: object) -> None:
        create(self, *arguments)  # type: ignore[arg-type]
        made.append(self)

    monkeypatch.setattr(TinyTask, "__init__", record)
    train_tiny(finished)
    (task,) = made  # of the last phase
    for name, module in task.modules.items():
        for key, tensor in module.state_dict().items():
            assert torch.equal(tensor, trained[f"{name}/{key}"]), key


def test_a_longer_training_keeps_its_snapshots_evenly_spaced(tmp_path: Path) -> None:
    short = replace(config(tmp_path, "run"), ema=EMAConfig(snapshots=4))
    run = train_tiny(short)
    assert [p.stem for p in sorted(run.averages.iterdir())] == [
        f"images-{steps * BATCH:012d}" for steps in (10, 20, 30, 40)
    ]
    train_tiny(replace(short, loop=loop_config(2 * STEPS)))
    assert [p.stem for p in sorted(run.averages.iterdir())] == [
        f"images-{steps * BATCH:012d}" for steps in (20, 40, 60, 80)
    ]


def test_an_error_of_a_preview_costs_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = train_tiny(config(tmp_path, "straight"))
    failing = config(tmp_path, "failing", checkpoint_every=20 * BATCH)  # with the preview

    def preview(self: TinyTask, path: Path) -> None:
        raise JobError("no picture")

    with monkeypatch.context() as patch:
        patch.setattr(TinyTask, "preview", preview)
        with pytest.raises(JobError, match="no picture"):
            train_tiny(failing)
    run = RunFolder(Path(failing.output))
    assert newest_checkpoint(run.checkpoints).images == 20 * BATCH
    train_tiny(failing)
    assert_same_run(straight, run)


BORDER = 18 * BATCH  # no multiple of the interval of checkpoints


def two_phases(tmp_path: Path, name: str, **loop: object) -> TinyConfig:
    return replace(config(tmp_path, name, **loop), border=BORDER)


@pytest.mark.parametrize(
    ("count", "killed_after"),
    [
        (1, 7),
        (2, 29),
        (4, 7),  # of which the order of the sum of gradients is seen: a + b is b + a
        pytest.param(1, 29, marks=pytest.mark.slow),
        pytest.param(2, 7, marks=pytest.mark.slow),
    ],
)
def test_a_run_that_is_killed_in_either_of_two_phases_ends_bit_equal(
    tmp_path: Path, killed_after: int, count: int
) -> None:
    straight, killed = two_phases(tmp_path, "straight"), two_phases(tmp_path, "killed")
    start_tiny(count, straight, tmp_path).finish()
    run = RunFolder(Path(killed.output))
    kill_after(start_tiny(count, killed, tmp_path, Fault(slow=0.05)), run, killed_after)
    assert newest_checkpoint(run.checkpoints).images < STEPS * BATCH
    start_tiny(count, killed, tmp_path).finish()
    assert_same_run(RunFolder(Path(straight.output)), run)


def test_a_run_that_is_killed_at_the_border_begins_the_second_phase_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint there is the first phase's; the second begins from its averages."""
    straight = train_tiny(two_phases(tmp_path, "straight"))
    stopped = two_phases(tmp_path, "stopped")
    monkeypatch.setattr("tiny_training.TinyTask.step", _interrupted_in_the_second_phase)
    with pytest.raises(KeyboardInterrupt):
        train_tiny(stopped)
    monkeypatch.undo()
    run = RunFolder(Path(stopped.output))
    left = newest_checkpoint(run.checkpoints)
    assert (left.images, left.phase) == (BORDER, 0)
    train_tiny(stopped)
    assert newest_checkpoint(run.checkpoints).phase == 1
    assert_same_run(straight, run)


def _interrupted_in_the_second_phase(
    self: TinyTask, batch: object, images: int, accumulator: object, step: object = TinyTask.step
) -> None:
    if images >= BORDER:
        raise KeyboardInterrupt
    step(self, batch, images, accumulator)


def test_the_gradient_scaler_of_both_phases_is_one_also_for_a_run_killed_between_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scalers = emulate_gradient_scaler(monkeypatch, growth_interval=4)
    straight = train_tiny(two_phases(tmp_path, "straight"))
    with monkeypatch.context() as patch:
        patch.setattr("tiny_training.TinyTask.step", _interrupted_in_the_second_phase)
        with pytest.raises(KeyboardInterrupt):
            train_tiny(two_phases(tmp_path, "stopped"))
    stopped = train_tiny(two_phases(tmp_path, "stopped"))
    whole, _, resumed = (scaler.state_dict() for scaler in scalers)
    assert whole == resumed
    assert whole["scale"] == FIRST_SCALE * 2 ** (STEPS // 4)
    assert_same_run(straight, stopped)


def test_a_second_phase_has_a_learning_rate_and_averages_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = record_learning_rates(monkeypatch)
    run = train_tiny(replace(two_phases(tmp_path, "run"), ema=EMAConfig(snapshots=2)))
    rate, warm_up, steps = 1e-2, 40, STEPS - BORDER // BATCH
    assert rates[0] == rates[BORDER // BATCH] == pytest.approx(rate / warm_up)  # warmed up twice
    last = 0.5 * rate * (1 + math.cos(math.pi * (steps - 1) / steps))
    assert rates[-1] == pytest.approx(last)
    # Snapshots count the images of their phase.
    phases = [BORDER // BATCH, steps]
    assert max(int(p.stem.split("-")[1]) for p in run.averages.iterdir()) == max(phases) * BATCH
