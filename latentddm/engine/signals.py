"""Signals that ask a training to save and stop: SIGTERM, SIGUSR1 and Ctrl-C."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType

import torch
from accelerate import Accelerator

from latentddm.engine.distributed import collect
from latentddm.engine.errors import Interrupted
from latentddm.engine.nonfinite_guard import LateReader

# SIGUSR1 is what schedulers such as SLURM send ahead of a preemption; Windows has none.
STOPPING = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name)
)


class StopSignals:
    """Remembers the first signal instead of dying of it; a second Ctrl-C ends at once.

    received: the signal's number, 0 if there was none. Signals reach the main thread only;
    elsewhere this does nothing.
    """

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in STOPPING}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = self.received or number


class RaisedSignals(StopSignals):
    """Raises Interrupted at once, wherever the program is: for work that others save.

    saved: what will have been saved when the exception has left the block.
    """

    def __init__(self, saved: str) -> None:
        super().__init__()
        self.saved = saved

    def _note(self, number: int, frame: FrameType | None) -> None:
        raise Interrupted(number, self.saved)


class Agreement:
    """All processes learn in the same step that one of them was told to stop."""

    def __init__(self, signals: StopSignals, accelerator: Accelerator) -> None:
        self.signals, self.accelerator, self._reader = signals, accelerator, LateReader()

    def stop(self, images: int) -> int:
        """The number of the signal to stop for; 0 to go on."""
        if self.accelerator.num_processes == 1:
            return self.signals.received
        received = torch.tensor([self.signals.received], device=self.accelerator.device)
        arrived = self._reader.read(collect(self.accelerator, received), images)
        return int(arrived[0].max()) if arrived is not None else 0
