"""Two trainings at once end as one would: both done, both saved, or the failure named."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from latentddm.demo import parallel_runs
from latentddm.demo.parallel_runs import train_in_parallel
from latentddm.engine.checkpoint import newest_checkpoint
from latentddm.engine.errors import Interrupted, JobError, UserError
from latentddm.engine.loop import SinglePhaseConfig
from latentddm.training.generator import TrainConfig
from latentddm.training.objective import Objective

WAITS = """
import pathlib, signal, sys, time
def save(*_):
    pathlib.Path({saved!r}).touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
pathlib.Path({ready!r}).touch()
time.sleep(60)
"""


def config(store: Path | str, output: Path, draws: int) -> TrainConfig:
    objective = Objective(draws=2) if draws > 1 else Objective.plain_diffusion()
    network = {"channels": 16, "multipliers": [1], "blocks": 1, "attention_levels": []}
    loop = SinglePhaseConfig(images=16, batch_size=8)
    return TrainConfig(
        store=str(store), output=str(output), network=network, objective=objective, loop=loop
    )


@pytest.fixture
def two(tmp_path: Path) -> dict[str, TrainConfig]:
    return {name: config("no store", tmp_path / name, 1) for name in ("first", "second")}


def pretend(
    monkeypatch: pytest.MonkeyPatch, folder: Path, scripts: dict[str, str], cores: int = 2
) -> None:
    """Let each training be a script instead."""

    def start(path: Path, threads: int, place: int) -> subprocess.Popen[bytes]:
        code = scripts[path.stem].format(
            saved=str(folder / f"{path.stem} saved"), ready=str(folder / f"{path.stem} ready")
        )
        return subprocess.Popen([sys.executable, "-c", code], start_new_session=True)

    monkeypatch.setattr(parallel_runs, "_start", start)
    monkeypatch.setattr(os, "cpu_count", lambda: cores)


def alone(configs: dict[str, TrainConfig]) -> dict[str, list[TrainConfig]]:
    return {name: [config] for name, config in configs.items()}


def finish(configs: dict[str, TrainConfig], folder: Path) -> None:
    with train_in_parallel(alone(configs), folder) as finished:
        for _ in finished:
            pass


def test_both_are_trained_to_the_end_with_the_cores_between_them(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    configs = {f"m{m}": config(tiny_store, tmp_path / f"run{m}", m) for m in (1, 2)}
    with train_in_parallel(alone(configs), tmp_path) as finished:
        assert set(finished) == set(configs)
    for m in (1, 2):
        newest = newest_checkpoint(tmp_path / f"run{m}" / "checkpoints")
        assert newest is not None
        assert newest.images == 16


@pytest.mark.parametrize("cores", [1, 2])
def test_a_run_of_a_chain_starts_from_the_one_before(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cores: int
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    first = config(tiny_store, tmp_path / "first", 1)
    then = replace(config(tiny_store, tmp_path / "then", 2), start=first.output)
    with train_in_parallel(
        {"a": [first, then], "b": [replace(first, output=str(tmp_path / "b"))]}, tmp_path
    ) as finished:
        assert set(finished) == {"a", "b"}
    newest = newest_checkpoint(tmp_path / "then" / "checkpoints")
    assert newest is not None
    assert newest.images == 16


def test_a_failure_is_named_and_the_other_saves(
    two: dict[str, TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails = "import pathlib, time\nwhile not pathlib.Path({ready!r}.replace('first', 'second'))"
    fails += ".exists(): time.sleep(0.01)\nraise SystemExit(1)"
    pretend(monkeypatch, tmp_path, {"first": fails, "second": WAITS})
    with pytest.raises(JobError, match="The training of first did not end well"):
        finish(two, tmp_path)
    assert (tmp_path / "second saved").exists()


def test_what_is_refused_is_a_wrong_request(
    two: dict[str, TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, tmp_path, dict.fromkeys(two, "raise SystemExit(2)"))
    with pytest.raises(UserError, match=r"The training of \w+ was refused"):
        finish(two, tmp_path)


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_both_save(
    sent: int, two: dict[str, TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, tmp_path, dict.fromkeys(two, WAITS))

    def interrupt() -> None:
        while not all((tmp_path / f"{name} ready").exists() for name in two):
            pass
        os.kill(os.getpid(), sent)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(Interrupted, match="saved first and second; run the same command again"):
        finish(two, tmp_path)
    assert all((tmp_path / f"{name} saved").exists() for name in two)


def test_a_signal_is_heard_while_what_has_ended_is_measured(
    two: dict[str, TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = "import pathlib\npathlib.Path({ready!r}).touch()"
    pretend(monkeypatch, tmp_path, {"first": ends, "second": WAITS})

    def measure_and_be_told_to_stop() -> None:
        with train_in_parallel(alone(two), tmp_path) as finished:
            for _ in finished:
                while not (tmp_path / "second ready").exists():
                    pass
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match="run the same command again"):
        measure_and_be_told_to_stop()
    assert (tmp_path / "second saved").exists()


def test_an_error_while_the_others_train_lets_them_save(
    two: dict[str, TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, tmp_path, dict.fromkeys(two, WAITS))

    def fail_while_they_train() -> None:
        with train_in_parallel(alone(two), tmp_path):
            while not all((tmp_path / f"{name} ready").exists() for name in two):
                pass
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_while_they_train()
    assert all((tmp_path / f"{name} saved").exists() for name in two)
