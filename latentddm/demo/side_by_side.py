"""Trains runs beside each other, each by `latentddm train` in a process of its own.

A small network keeps one core busy and gains little from a second: two trainings at once are done
sooner than one after the other.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from latentddm.engine.config import to_yaml
from latentddm.engine.devices import default_device
from latentddm.engine.errors import Interrupted, RequestError, WorkError
from latentddm.engine.files import write_text
from latentddm.engine.signals import StopSignals
from latentddm.training import TrainConfig, train

POLL_SECONDS = 0.2
REFUSED = 2  # the exit code of a wrong request


def train_side_by_side(configs: Mapping[str, TrainConfig], folder: Path) -> None:
    """Train or resume each run, by its name; `folder` is for their configs, NAME.yaml.

    On a GPU, or with fewer cores than runs, they are trained one after the other. WorkError if one
    fails, RequestError if one is refused; it says why itself, and the others save and stop.
    Interrupted after a signal, when all have saved.
    """
    threads = (os.cpu_count() or 1) // len(configs)
    if default_device().type != "cpu" or threads == 0:
        for config in configs.values():
            train(config)
        return
    processes: dict[str, subprocess.Popen[bytes]] = {}
    with StopSignals() as signals:
        try:
            for place, (name, config) in enumerate(configs.items()):
                path = folder / f"{name}.yaml"
                write_text(path, to_yaml(config))
                processes[name] = _start(path, threads, place)
            _wait(processes, signals)
        finally:  # after an error here, or a second Ctrl-C
            for process in processes.values():
                process.kill()
    if signals.received:
        raise Interrupted(signals.received, f"saved {' and '.join(configs)}")
    failed = {name: process.returncode for name, process in processes.items() if process.returncode}
    if REFUSED in failed.values():
        raise RequestError("The training was refused, for the reason that stands above.")
    if failed:
        raise WorkError(
            f"The training of {' and '.join(failed)} did not end well and says why above; run the "
            "same command again to go on."
        )


def _start(config: Path, threads: int, place: int) -> subprocess.Popen[bytes]:
    """`latentddm train` with its share of the cores, its progress bar in line `place`."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TQDM_POSITION": str(place)}
    return subprocess.Popen(
        [sys.executable, "-m", "latentddm", "train", str(config)],
        env=environment,
        stdout=subprocess.DEVNULL,
        start_new_session=True,  # a terminal's Ctrl-C comes from here, once
    )


def _wait(processes: Mapping[str, subprocess.Popen[bytes]], signals: StopSignals) -> None:
    """Until all have ended; a signal here, or a failure of one, asks all to save and stop."""
    asked = False
    while running := [process for process in processes.values() if process.poll() is None]:
        failed = any(process.returncode for process in processes.values())
        if not asked and (signals.received or failed):
            for process in running:
                process.terminate()
            asked = True
        time.sleep(POLL_SECONDS)
