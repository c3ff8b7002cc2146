"""Trains runs beside each other, each by `latentddm train` in a process of its own.

A small network keeps one core busy and gains little from a second: two trainings at once are done
sooner than one after the other, and when one has ended its core is free for what comes next.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from latentddm.engine.atomic_io import write_text
from latentddm.engine.config import to_yaml
from latentddm.engine.devices import default_device
from latentddm.engine.errors import EXIT_WRONG_REQUEST, JobError, UserError
from latentddm.engine.signals import RaisedSignals
from latentddm.training.generator import TrainConfig, train

POLL_SECONDS = 0.2


@contextmanager
def train_in_parallel(
    chains: Mapping[str, Sequence[TrainConfig]], folder: Path
) -> Iterator[Iterator[str]]:
    """Train or resume chains of runs, a core each; iterate over the names of those that are done.

        with train_in_parallel({"ddm": [first, then], "plain": [only]}, folder) as finished:
            for name in finished: ...

    The runs of a chain are trained one after the other: a later one may start from an earlier.
    folder: for their configs, called as their outputs. While others still train, torch has one core
    here. On a GPU, or with fewer cores than chains, they are trained here, one after the other. If
    a training fails, or the block is left early, the others save and stop. JobError or
    UserError for one that fails or is refused, which says why itself; Interrupted after a
    signal, when all saved.
    """
    cores = os.cpu_count() or 1
    threads = cores // len(chains)
    if default_device().type != "cpu" or threads == 0:
        yield _one_after_the_other(chains)
        return
    before = torch.get_num_threads()
    running = {
        name: _Chain(list(configs), folder, threads, place)
        for place, (name, configs) in enumerate(chains.items())
    }
    with RaisedSignals(f"saved {' and '.join(chains)}"):
        try:
            for chain in running.values():
                chain.start_next()
            # More threads than cores that are free wait for each other, many times slower.
            torch.set_num_threads(1)
            yield _finished(running, before)
        finally:
            torch.set_num_threads(before)
            _stop(running.values())


def _one_after_the_other(chains: Mapping[str, Sequence[TrainConfig]]) -> Iterator[str]:
    for name, configs in chains.items():
        for config in configs:
            train(config)
        yield name


@dataclass
class _Chain:
    """Runs that one share of the cores trains, and the process of the present one."""

    waiting: list[TrainConfig]
    folder: Path
    threads: int
    place: int  # the line of its progress bars
    name: str = ""  # of the present run
    process: subprocess.Popen[bytes] | None = None

    def start_next(self) -> None:
        config = self.waiting.pop(0)
        self.name = Path(config.output).name
        path = self.folder / f"{self.name}.yaml"
        write_text(path, to_yaml(config))
        self.process = _start(path, self.threads, self.place)

    def advance(self) -> bool:
        """Start the next run where one has ended well; True if it was the last.

        JobError or UserError for a run that ended otherwise.
        """
        assert self.process is not None
        code = self.process.poll()
        if code is None:
            return False
        if code:
            raise _failure(self.name, code)
        if not self.waiting:
            return True
        self.start_next()
        return False


def _start(config: Path, threads: int, place: int) -> subprocess.Popen[bytes]:
    """`latentddm train` with its share of the cores, its progress bar in line `place`."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TQDM_POSITION": str(place)}
    return subprocess.Popen(
        [sys.executable, "-m", "latentddm", "train", str(config)],
        env=environment,
        stdout=subprocess.DEVNULL,
        start_new_session=True,  # a terminal's Ctrl-C comes from here, once
    )


def _finished(running: Mapping[str, _Chain], threads: int) -> Iterator[str]:
    """The names of the chains, each when it has ended well; all `threads` with the last."""
    waiting = dict(running)
    while waiting:
        ended = [name for name, chain in waiting.items() if chain.advance()]
        for name in ended:
            del waiting[name]
            if not waiting:
                torch.set_num_threads(threads)
            yield name
        if not ended:
            time.sleep(POLL_SECONDS)


def _stop(chains: Iterable[_Chain]) -> None:
    """Ask the processes to save and stop, and wait for it."""
    processes = [chain.process for chain in chains if chain.process is not None]
    for process in processes:
        process.terminate()
    for process in processes:
        process.wait()


def _failure(name: str, code: int) -> JobError | UserError:
    if code == EXIT_WRONG_REQUEST:
        return UserError(f"The training of {name} was refused, for the reason that is above.")
    return JobError(
        f"The training of {name} did not end well and says why above; run the same command again "
        "to go on."
    )
