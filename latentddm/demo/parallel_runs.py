"""Trains runs in parallel, each by `latentddm train` in a process of its own.

A small network keeps one core busy and gains little from a second: two trainings at once end sooner
than one after the other, and when one has ended its core is free for the next stage.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from latentddm.engine.atomic_io import write_text
from latentddm.engine.config import to_yaml
from latentddm.engine.cpu_threads import available_cores
from latentddm.engine.devices import default_device
from latentddm.engine.errors import EXIT_WRONG_REQUEST, JobError, UserError
from latentddm.engine.signals import STOP_SECONDS, RaisedSignals, stop_processes
from latentddm.training.config import TrainConfig
from latentddm.training.generator import train

POLL_SECONDS = 0.2


@contextmanager
def train_in_parallel(runs: Mapping[str, TrainConfig], folder: Path) -> Iterator[Iterator[str]]:
    """Train or resume runs, a core each; iterate over the names of those that have ended.

        with train_in_parallel({"ddm": first, "plain": second}, folder) as finished:
            for name in finished: ...

    folder: for their configs, NAME.yaml. While others still train, torch has one core here. On a
    GPU, or with fewer cores than runs, they are trained here, one after the other. If a training
    fails, or the block is left early, the others save and stop. JobError or UserError for one that
    fails or is refused, whose own message is above; Interrupted after a signal, when all saved.
    """
    threads = threads_of_each(len(runs))
    if threads == 0:
        yield _one_after_the_other(runs)
        return
    before = torch.get_num_threads()
    running: dict[str, subprocess.Popen[bytes]] = {}
    with RaisedSignals(f"saved {' and '.join(runs)}"):
        try:
            for place, (name, config) in enumerate(runs.items()):
                path = folder / f"{name}.yaml"
                write_text(path, to_yaml(config))
                running[name] = _start(path, threads, place)
            # More threads than cores that are free wait for each other, many times slower.
            torch.set_num_threads(1)
            yield _finished(running, before)
        finally:
            torch.set_num_threads(before)
            stop_processes(running.values(), STOP_SECONDS)


def threads_of_each(count: int) -> int:
    """Threads of each of `count` trainings at once; 0: they are trained one after the other."""
    return available_cores() // count if default_device().type == "cpu" else 0


def _one_after_the_other(runs: Mapping[str, TrainConfig]) -> Iterator[str]:
    for name, config in runs.items():
        train(config)
        yield name


def _start(config: Path, threads: int, place: int) -> subprocess.Popen[bytes]:
    """`latentddm train` with its share of the cores, its progress bar in line `place`."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TQDM_POSITION": str(place)}
    return subprocess.Popen(
        [sys.executable, "-m", "latentddm", "train", str(config)],
        env=environment,
        stdout=subprocess.DEVNULL,
        start_new_session=True,  # a terminal's Ctrl-C comes from here, once
    )


def _finished(running: Mapping[str, subprocess.Popen[bytes]], threads: int) -> Iterator[str]:
    """The names of the runs, each when it has ended well; all `threads` with the last."""
    waiting = dict(running)
    while waiting:
        ended = [name for name, process in waiting.items() if _has_ended(name, process)]
        for name in ended:
            del waiting[name]
            if not waiting:
                torch.set_num_threads(threads)
            yield name
        if not ended:
            time.sleep(POLL_SECONDS)


def _has_ended(name: str, process: subprocess.Popen[bytes]) -> bool:
    """Whether a run has ended well; JobError or UserError if it ended otherwise."""
    code = process.poll()
    if code == EXIT_WRONG_REQUEST:
        raise UserError(f"The training of {name} was refused, for the reason that is above.")
    if code:
        raise JobError(
            f"The training of {name} failed, for the reason that is above; run the same command "
            "again to go on."
        )
    return code == 0
