"""Save and stop: on a signal (SIGTERM, SIGUSR1 or Ctrl-C), and by asking other processes to."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections.abc import Iterable
from types import FrameType, TracebackType

import torch
from accelerate import Accelerator

from latentddm.engine.distributed import collect
from latentddm.engine.errors import STOPPING, Interrupted
from latentddm.engine.late_reader import LateReader

STOP_SECONDS = 120
"""For a process to save, after a request to stop."""


class StopSignals:
    """Handlers that record the first signal; a second Ctrl-C raises KeyboardInterrupt at once.

    received: the signal's number, 0 before one. Python handles signals in the main thread only; in
    another thread nothing is installed.
    """

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in STOPPING}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = self.received or number


class RaisedSignals(StopSignals):
    """Handlers that raise Interrupted at once: for work whose saving is left to other processes.

    saved: a description of the saved state, of the time after this block.
    """

    def __init__(self, saved: str) -> None:
        super().__init__()
        self.saved = saved

    def _handle(self, number: int, frame: FrameType | None) -> None:
        raise Interrupted(number, self.saved)


def stop_processes(processes: Iterable[subprocess.Popen[bytes]], seconds: float) -> None:
    """Ask processes to save and stop, and wait for it; kill those that take more than `seconds`."""
    processes = list(processes)
    for process in processes:
        process.terminate()
    end = time.monotonic() + seconds
    for process in processes:
        try:
            process.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:  # its files are whole without its help
            process.kill()
            process.wait()


class Agreement:
    """One decision of all processes, in the same step, after a signal to any of them."""

    def __init__(self, signals: StopSignals, accelerator: Accelerator) -> None:
        self.signals, self.accelerator, self._reader = signals, accelerator, LateReader()

    def stop(self, images: int) -> int:
        """The number of the received signal, the same on all processes; 0 without one."""
        if self.accelerator.num_processes == 1:
            return self.signals.received
        received = torch.tensor([self.signals.received], device=self.accelerator.device)
        arrived = self._reader.read(collect(self.accelerator, received), images)
        return int(arrived[0].max()) if arrived is not None else 0
