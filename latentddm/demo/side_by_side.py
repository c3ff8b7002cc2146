"""Trains runs beside each other, each by `latentddm train` in a process of its own.

A small network keeps one core busy and gains little from a second: two trainings at once are done
sooner than one after the other, and when one has ended its core is free for what comes next.
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

from latentddm.engine.config import to_yaml
from latentddm.engine.devices import default_device
from latentddm.engine.errors import EXIT_WRONG_REQUEST, RequestError, WorkError
from latentddm.engine.files import write_text
from latentddm.engine.signals import RaisedSignals
from latentddm.training import TrainConfig, train

POLL_SECONDS = 0.2
Processes = dict[str, subprocess.Popen[bytes]]


@contextmanager
def train_side_by_side(configs: Mapping[str, TrainConfig], folder: Path) -> Iterator[Iterator[str]]:
    """Train or resume runs; iterate over what is given for the name of each when it is trained.

        with train_side_by_side({"ddm": ..., "plain": ...}, folder) as finished:
            for name in finished: ...

    folder: for their configs, NAME.yaml. While others still train, torch has one core here. On a
    GPU, or with fewer cores than runs, they are trained here, one after the other. If a training
    fails, or the block is left early, the others save and stop. WorkError or RequestError for one
    that fails or is refused, which says why itself; Interrupted after a signal, when all saved.
    """
    cores = os.cpu_count() or 1
    threads = cores // len(configs)
    if default_device().type != "cpu" or threads == 0:
        yield _one_after_the_other(configs)
        return
    processes: Processes = {}
    before = torch.get_num_threads()
    with RaisedSignals(f"saved {' and '.join(configs)}"):
        try:
            for place, (name, config) in enumerate(configs.items()):
                path = folder / f"{name}.yaml"
                write_text(path, to_yaml(config))
                processes[name] = _start(path, threads, place)
            # More threads than cores that are free wait for each other, many times slower.
            torch.set_num_threads(1)
            yield _finished(processes, before)
        finally:
            torch.set_num_threads(before)
            _stop(processes)


def _one_after_the_other(configs: Mapping[str, TrainConfig]) -> Iterator[str]:
    for name, config in configs.items():
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


def _finished(processes: Processes, threads: int) -> Iterator[str]:
    """The names of the processes, each when it has ended well; all `threads` with the last."""
    waiting = dict(processes)
    while waiting:
        ended = [name for name, process in waiting.items() if process.poll() is not None]
        for name in ended:
            process = waiting.pop(name)
            if process.returncode:
                raise _failure(name, process.returncode)
            if not waiting:
                torch.set_num_threads(threads)
            yield name
        if not ended:
            time.sleep(POLL_SECONDS)


def _stop(processes: Processes) -> None:
    """Ask the processes to save and stop, and wait for it."""
    for process in processes.values():
        process.terminate()
    for process in processes.values():
        process.wait()


def _failure(name: str, code: int) -> WorkError | RequestError:
    if code == EXIT_WRONG_REQUEST:
        return RequestError(f"The training of {name} was refused, for the reason that is above.")
    return WorkError(
        f"The training of {name} did not end well and says why above; run the same command again "
        "to go on."
    )
