"""Commands with an injected fault: an end in time, one sentence, and nothing left behind."""

from __future__ import annotations

import gc
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import psutil
import pytest
from messages import assert_names

from latentddm.cli import main

SECONDS = 60  # of a machine that is busy with other things


@contextmanager
def time_limit(seconds: int = SECONDS) -> Iterator[None]:
    """AssertionError in the block after `seconds`: a command that hangs fails its test."""

    def late(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"still running after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def fails(
    capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, folder: Path, *named: str
) -> None:
    """The command ends with `code` and one sentence with `named`; no process or partial file."""
    processes = set(psutil.Process().children(recursive=True))
    capsys.readouterr()
    with time_limit():
        assert main(arguments) == code
    gc.collect()
    assert set(psutil.Process().children(recursive=True)) <= processes
    stderr = capsys.readouterr().err
    assert "Traceback" not in stderr
    sentences = [line for line in stderr.splitlines() if line.startswith("latentddm: ")]
    assert len(sentences) == 1, stderr
    assert_names(sentences[0], *named)
    assert not list(folder.rglob("*.partial"))
