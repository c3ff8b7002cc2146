"""The loop's view of a training: phases, each of one task, counted in images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from torch import nn
from torch.optim import Optimizer

from latentddm.engine.checkpoint import Checkpoint
from latentddm.engine.ema import Averages
from latentddm.engine.metric_accumulator import MetricAccumulator

Examine = Callable[[int, Mapping[str, float]], Iterable[str]]


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """Batches and intervals of a training, counted in images."""

    batch_size: int = 64  # over all processes
    micro_batches: int = 1  # parts of a process's share of the batch, in turn: less memory
    sharded: bool = False  # weights, gradients and averages sharded over the processes (FSDP2)
    log_every: int = 2_000
    preview_every: int = 20_000
    checkpoint_every: int = 50_000
    keep_checkpoints: int = 2
    trackers: tuple[str, ...] = ("tensorboard",)  # of the metrics; see trackers.py

    def __post_init__(self) -> None:
        """ValueError for a number below 1."""
        for name, value in vars(self).items():
            if type(value) is int and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")


@dataclass(frozen=True, kw_only=True)
class SinglePhaseConfig(LoopConfig):
    """The loop of a training of one phase."""

    images: int


ENGINE_KEYS_THAT_MAY_CHANGE = (
    "loop.images",
    "loop.micro_batches",
    "loop.sharded",
    "loop.log_every",
    "loop.preview_every",
    "loop.checkpoint_every",
    "loop.keep_checkpoints",
    "loop.trackers",
    "ema.snapshots",
)


class Span(NamedTuple):
    """The images of a phase, as images seen by the run: from `start` to `end`."""

    start: int
    end: int

    @property
    def length(self) -> int:
        return self.end - self.start

    @classmethod
    def after(cls, start: int, images: int, batch_size: int) -> Span:
        """The next `images`, in whole batches."""
        return cls(start, start + -(-images // batch_size) * batch_size)


class Task(Protocol):
    """A training task. `modules` and `optimizers` are its whole state, by file name."""

    @property
    def modules(self) -> Mapping[str, nn.Module]: ...

    @property
    def optimizers(self) -> Mapping[str, Optimizer]: ...

    @property
    def averages(self) -> Averages:
        """The moving averages, whose snapshots are kept."""
        ...

    def batches(self, start: int) -> Iterator[Any]:
        """This process's batches after the first `start` images; endless."""
        ...

    def step(self, batch: Any, images: int, accumulator: MetricAccumulator) -> None:
        """One optimizer step on the batch after the first `images`; metrics go to `accumulator`."""
        ...

    def preview(self, path: Path) -> None:
        """A picture of the task's present state, written to `path` by the main process.

        Called on all processes, as an evaluation of a sharded network is collective.
        """
        ...


@dataclass(frozen=True)
class PhaseOfTask:
    """The loop's view of one phase.

    make: builds the task; its argument is the last checkpoint of the phase before, or None for the
    first phase and for a resumed one, whose state is loaded afterwards. examine: (images, metrics)
    -> warnings, logged with the metrics.
    """

    span: Span
    make: Callable[[Checkpoint | None], Task]
    examine: Examine | None = None


def single_phase(task: Task, config: SinglePhaseConfig) -> list[PhaseOfTask]:
    """The phases of a training of one phase."""
    return [PhaseOfTask(whole_span(config), lambda _: task)]


def whole_span(config: SinglePhaseConfig) -> Span:
    """The span of a training of one phase."""
    return Span.after(0, config.images, config.batch_size)
