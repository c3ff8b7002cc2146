"""Commands one after the other, each of which goes on where it stopped: the body of long tools."""

from __future__ import annotations

import shlex
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from latentddm.engine.atomic_io import read_json
from latentddm.engine.config import differences
from latentddm.engine.cpu_threads import let_waiting_threads_sleep
from latentddm.engine.errors import Interrupted, JobError, UserError
from latentddm.engine.signals import STOP_SECONDS, RaisedSignals, stop_processes


class Stage(NamedTuple):
    """One command."""

    name: str
    command: Sequence[str]


def kept_plan(path: Path, request: Mapping[str, Any]) -> dict[str, Any] | None:
    """The plan in `path` of an earlier call, its `request` among the values; None without a file.

    UserError if it is of another request.
    """
    if not path.is_file():
        return None
    kept: dict[str, Any] = read_json(path)
    changed = differences(kept["request"], request)
    if changed:
        raise UserError(
            f"{path} is of another request (differs in: {', '.join(changed)}); repeat that one, or "
            "choose another --output."
        )
    return kept


def run_stages(stages: Iterable[Stage], minutes: float | None = None) -> None:
    """All stages, or as many as the time allows; Interrupted if it ended first.

    JobError for a stage that fails.
    """
    let_waiting_threads_sleep()  # those of the commands, which inherit the setting
    ends = time.monotonic() + 60 * minutes if minutes else None
    for stage in stages:
        print(f"== {stage.name}: {shlex.join(stage.command)}", flush=True)
        started = time.monotonic()
        _run_until(ends, stage)
        print(f"== {stage.name}: {time.monotonic() - started:.0f} s", flush=True)


def _run_until(ends: float | None, stage: Stage) -> None:
    """Run a stage to its end, or ask it to save and stop: when the time is over, or on a signal."""
    asked = RaisedSignals(f"stopped in the stage {stage.name}")
    with asked, subprocess.Popen(stage.command) as process:
        try:
            process.wait(None if ends is None else max(0.0, ends - time.monotonic()))
        except subprocess.TimeoutExpired:
            stop_processes([process], STOP_SECONDS)
            message = f"the time was over in the stage {stage.name}"
            raise Interrupted(signal.SIGTERM, message) from None
        except Interrupted:
            stop_processes([process], STOP_SECONDS)
            raise
    if process.returncode:
        raise JobError(
            f"The stage {stage.name} ended with exit code {process.returncode}; it says why above. "
            "Run the same command again to go on there."
        )
