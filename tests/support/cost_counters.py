"""Counters in the functions of a training: bytes that a process sends and writes, numbers drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

from torch import Tensor

from latentddm.engine import checkpoint_manager, philox, seeding
from latentddm.engine.checkpoint_manager import CheckpointManager
from latentddm.training.task import GeneratorTask

COUNTER = Path("/proc/self/io")


def bytes_of_process() -> int:
    """Bytes that this process has given to the kernel, for files and sockets (Linux)."""
    fields = dict(line.split(": ") for line in COUNTER.read_text().splitlines())
    return int(fields["wchar"])


class Counters:
    """The counters of one process."""

    def __init__(self) -> None:
        self.normals = 0
        self.steps: list[tuple[int, int]] = []  # bytes and normal numbers when each step began
        self.bytes: dict[str, int] = {}  # within a function, by its name

    @contextmanager
    def in_training(self) -> Iterator[None]:
        """Count in this block."""
        with (
            _replaced(GeneratorTask, "step", self._of_steps),
            _replaced(seeding, "draw", self._of_numbers),
            _replaced(CheckpointManager, "save", self.of_bytes),
            _replaced(CheckpointManager, "snapshot", self.of_bytes),
            _replaced(checkpoint_manager, "save_checkpoint", self.of_bytes),
            _replaced(checkpoint_manager, "write_snapshot", self.of_bytes),
        ):
            yield

    def of_bytes(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with its bytes counted."""

        @wraps(function)
        def counted(*arguments: Any, **options: Any) -> Any:
            before = bytes_of_process()
            result = function(*arguments, **options)
            name = function.__name__
            self.bytes[name] = self.bytes.get(name, 0) + bytes_of_process() - before
            return result

        return counted

    def _of_steps(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def counted(*arguments: Any, **options: Any) -> Any:
            self.steps.append((bytes_of_process(), self.normals))
            return function(*arguments, **options)

        return counted

    def _of_numbers(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        @wraps(function)
        def counted(convert: Callable[..., Tensor], *arguments: Any, **options: Any) -> Tensor:
            drawn = function(convert, *arguments, **options)
            if convert is philox.normal_numbers:
                self.normals += drawn.numel()
            return drawn

        return counted


@contextmanager
def _replaced(place: Any, name: str, counter: Callable[[Any], Any]) -> Iterator[None]:
    before = getattr(place, name)
    setattr(place, name, counter(before))
    try:
        yield
    finally:
        setattr(place, name, before)
