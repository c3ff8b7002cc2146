"""Two trainings at once end as one would: both done, both saved, or the failure named."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from tiny_runs import PLAIN, generator_config, phase

from latentddm.demo import parallel_runs
from latentddm.demo.parallel_runs import train_in_parallel
from latentddm.engine.checkpoint import newest_checkpoint
from latentddm.engine.errors import Interrupted, JobError, UserError
from latentddm.training.config import TrainConfig

WAITS = """
import pathlib, signal, sys, time
def save(*_):
    pathlib.Path({saved!r}).touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
pathlib.Path({ready!r}).touch()
time.sleep(60)
"""


FAILS = """
import pathlib, time
other = pathlib.Path({ready!r}.replace('first', 'second'))
end = time.monotonic() + 60
while not other.exists() and time.monotonic() < end:
    time.sleep(0.01)
raise SystemExit(1)
"""
HANGS = """
import pathlib, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path({ready!r}).touch()
time.sleep(60)
"""


@pytest.fixture
def two(tmp_path: Path) -> dict[str, TrainConfig]:
    return {name: generator_config("no store", tmp_path / name) for name in ("first", "second")}


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
    monkeypatch.setattr(parallel_runs, "available_cores", lambda: cores)


def wait_for(*paths: Path, seconds: float = 60) -> None:
    """Wait until all paths exist; AssertionError after a while, so that no test hangs."""
    end = time.monotonic() + seconds
    while not all(path.exists() for path in paths):
        assert time.monotonic() < end, f"{paths} never came to be"
        time.sleep(0.01)


def finish(configs: dict[str, TrainConfig], folder: Path) -> None:
    with train_in_parallel(configs, folder) as finished:
        for _ in finished:
            pass


@pytest.mark.parametrize("cores", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_both_are_trained_to_the_end_with_the_cores_between_them(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cores: int
) -> None:
    monkeypatch.setattr(parallel_runs, "available_cores", lambda: cores)
    configs = {
        "ddm": generator_config(tiny_store, tmp_path / "ddm", phase(8, PLAIN), phase(8)),
        "plain": generator_config(tiny_store, tmp_path / "plain", phase(16, PLAIN)),
    }
    with train_in_parallel(configs, tmp_path) as finished:
        assert set(finished) == set(configs)
    for name in configs:
        newest = newest_checkpoint(tmp_path / name / "checkpoints")
        assert newest is not None
        assert newest.images == 16


def test_a_failure_is_named_and_the_other_saves(
    two: dict[str, TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, tmp_path, {"first": FAILS, "second": WAITS})
    with pytest.raises(JobError, match="The training of first failed"):
        finish(two, tmp_path)
    assert (tmp_path / "second saved").exists()


def test_a_refused_training_is_a_user_error(
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
        wait_for(*(tmp_path / f"{name} ready" for name in two))
        os.kill(os.getpid(), sent)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(Interrupted, match="saved first and second; run the same command again"):
        finish(two, tmp_path)
    assert all((tmp_path / f"{name} saved").exists() for name in two)


def test_a_signal_arrives_while_a_finished_run_is_measured(
    two: dict[str, TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = "import pathlib\npathlib.Path({ready!r}).touch()"
    pretend(monkeypatch, tmp_path, {"first": ends, "second": WAITS})

    def measure_and_be_interrupted() -> None:
        with train_in_parallel(two, tmp_path) as finished:
            for _ in finished:
                wait_for(tmp_path / "second ready")
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match="run the same command again"):
        measure_and_be_interrupted()
    assert (tmp_path / "second saved").exists()


def test_an_error_while_the_others_train_lets_them_save(
    two: dict[str, TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, tmp_path, dict.fromkeys(two, WAITS))

    def fail_while_they_train() -> None:
        with train_in_parallel(two, tmp_path):
            wait_for(*(tmp_path / f"{name} ready" for name in two))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_while_they_train()
    assert all((tmp_path / f"{name} saved").exists() for name in two)


def test_a_training_that_does_not_stop_is_killed(
    tmp_path: Path, two: dict[str, TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, tmp_path, {"first": FAILS, "second": HANGS})
    monkeypatch.setattr(parallel_runs, "STOP_SECONDS", 0.2)
    before = set(psutil.Process().children())
    with pytest.raises(JobError, match="The training of first failed"):
        finish(two, tmp_path)
    assert set(psutil.Process().children()) <= before
