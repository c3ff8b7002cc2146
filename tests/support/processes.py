"""One piece of work in several processes that are forked from the test, connected by gloo."""

from __future__ import annotations

import logging
import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate.state import AcceleratorState

from latentddm.engine.errors import Interrupted, JobError, UserError

LIMIT = 120  # seconds for each wait


class Processes:
    """`work` in `count` processes; each has a log file with its output and its error."""

    def __init__(self, count: int, work: Callable[[], object], folder: Path) -> None:
        context = multiprocessing.get_context("fork")  # to import torch again takes seconds
        port = free_port()
        self.logs = [folder / f"rank{rank}.log" for rank in range(count)]
        self.started = [
            context.Process(target=_run, args=(rank, count, port, self.logs[rank], work))
            for rank in range(count)
        ]
        for process in self.started:
            process.start()

    def wait(self, seconds: float = LIMIT) -> list[int | None]:
        """The exit codes; a process that hangs is killed, and its code is None."""
        end = time.monotonic() + seconds
        codes = []
        for process in self.started:
            process.join(max(0.0, end - time.monotonic()))
            codes.append(process.exitcode)
        self.kill()
        return codes

    def finish(self) -> None:
        """Wait for the end; AssertionError, with the logs, if a process fails."""
        assert self.wait() == [0] * len(self.started), self.outputs()

    def kill(self) -> None:
        """Kill -9."""
        for process in self.started:
            if process.is_alive():
                process.kill()
                process.join()

    def wait_for(self, path: Path, text: str, seconds: float = LIMIT) -> None:
        """Wait until a file contains a text; AssertionError after `seconds`."""
        end = time.monotonic() + seconds
        while not path.is_file() or text not in path.read_text():
            if time.monotonic() > end or not any(p.is_alive() for p in self.started):
                raise AssertionError(f"{path} does not contain {text!r}: {self.outputs()}")
            time.sleep(0.01)

    def outputs(self) -> list[str]:
        """The log of each process."""
        return [log.read_text() if log.exists() else "" for log in self.logs]


def free_port() -> int:
    """A port for the first process to listen at."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def _run(rank: int, count: int, port: int, log: Path, work: Callable[[], object]) -> None:
    if count > 1:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    os.environ["ACCELERATE_USE_CPU"] = "true"
    AcceleratorState._reset_state(reset_partial_state=True)  # inherited by the fork
    torch.set_num_threads(1)
    with open(log, "w", buffering=1) as file:
        sys.stdout = sys.stderr = file
        logging.basicConfig(stream=file, format="%(message)s", force=True)
        logging.getLogger("latentddm").setLevel(logging.INFO)
        try:
            work()
        except (UserError, JobError) as error:
            file.write(f"{type(error).__name__}: {error}\n")
            code = 2 if isinstance(error, UserError) else 1
        except Interrupted as error:
            file.write(f"Interrupted: {error}\n")
            code = 128 + error.signal_number
        else:
            code = 0
        file.flush()
    os._exit(code)  # gloo's threads may wait for a dead process
