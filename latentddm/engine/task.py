"""What the training loop trains: a task in one or several phases, counted in images."""

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
    """The batches, and how often things happen; everything is counted in images."""

    batch_size: int = 64  # over all processes
    micro_batches: int = 1  # parts of each process's share, one after the other: less memory
    sharded: bool = False  # weights, gradients and averages spread over the processes (FSDP)
    log_every: int = 2_000
    preview_every: int = 20_000
    checkpoint_every: int = 50_000
    keep_checkpoints: int = 2
    trackers: tuple[str, ...] = ("tensorboard",)  # of the figures; see trackers.py

    def __post_init__(self) -> None:
        """ValueError names a number that makes no loop."""
        for name, value in vars(self).items():
            if type(value) is int and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")


@dataclass(frozen=True, kw_only=True)
class SinglePhaseConfig(LoopConfig):
    """The loop of a training that has one phase."""

    images: int


LOOP_KEYS_THAT_MAY_CHANGE = (
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
    """The images of a phase: those after the first `start` of the run, until `end` are seen."""

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
    """What is trained. `modules` and `optimizers` are its whole state, by file name."""

    @property
    def modules(self) -> Mapping[str, nn.Module]: ...

    @property
    def optimizers(self) -> Mapping[str, Optimizer]: ...

    @property
    def averages(self) -> Averages:
        """The moving averages of which snapshots are kept."""
        ...

    def batches(self, start: int) -> Iterator[Any]:
        """This process's batches, from `start` images seen on, for ever."""
        ...

    def step(self, batch: Any, images: int, accumulator: MetricAccumulator) -> None:
        """One optimizer step on the images after the first `images`; reports into `accumulator`."""
        ...

    def preview(self, path: Path) -> None:
        """A picture of the task's present state. Called on all processes, as sharded networks
        need all of them; the main one writes it to `path`."""
        ...


@dataclass(frozen=True)
class PhaseOfTask:
    """One phase as the loop sees it.

    make: builds the task; its argument is the checkpoint at the end of the phase before, None for
    the first phase and for one that is resumed, whose state is loaded then. examine: yields
    warnings for the logged figures.
    """

    span: Span
    make: Callable[[Checkpoint | None], Task]
    examine: Examine | None = None


def single_phase(task: Task, config: SinglePhaseConfig) -> list[PhaseOfTask]:
    """The phases of a training that has one."""
    return [PhaseOfTask(whole_span(config), lambda _: task)]


def whole_span(config: SinglePhaseConfig) -> Span:
    """The span of a training that has one phase."""
    return Span.after(0, config.images, config.batch_size)
