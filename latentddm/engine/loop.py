"""The training loop that every trainer shares: count images, log, preview, save, resume, stop.

What is trained is a `Task`; this file knows no network, no loss and no data. All processes run
the same loop; what they decide they decide alike, and the main one writes the files.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from accelerate import Accelerator
from torch import nn
from torch.optim import Optimizer

from latentddm.engine.checkpoint_manager import CheckpointManager
from latentddm.engine.distributed import alone_in
from latentddm.engine.ema import Averages
from latentddm.engine.errors import Interrupted, JobError
from latentddm.engine.metric_accumulator import MetricAccumulator
from latentddm.engine.progress import Progress
from latentddm.engine.run import RunFolder
from latentddm.engine.signals import Agreement, StopSignals
from latentddm.engine.trackers import start_trackers

_log = logging.getLogger("latentddm")
Examine = Callable[[int, Mapping[str, float]], Iterable[str]]


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How long, in which batches, and what happens how often; everything is counted in images."""

    images: int
    batch_size: int = 64  # over all processes
    micro_batches: int = 1  # parts of each process's share, one after the other: less memory
    sharded: bool = False  # weights, gradients and averages spread over the processes (FSDP)
    log_every: int = 2_000
    preview_every: int = 20_000
    checkpoint_every: int = 50_000
    keep_checkpoints: int = 2
    trackers: tuple[str, ...] = ("tensorboard",)  # who is told the figures; see trackers.py

    def __post_init__(self) -> None:
        """ValueError names a number that makes no loop."""
        for name, value in vars(self).items():
            if type(value) is int and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")


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
        """One optimizer step on the images after the first `images`; reports into `means`."""
        ...

    def preview(self, path: Path) -> None:
        """A picture of what the task can do now. Called on all processes, as sharded networks
        need all of them; the main one writes it to `path`."""
        ...


def run_loop(
    task: Task,
    run: RunFolder,
    config: LoopConfig,
    accelerator: Accelerator,
    examine: Examine | None = None,
) -> None:
    """Train until `config.images` are seen, from the newest valid checkpoint if there is one.

    `examine` looks at the logged figures and yields warnings. A signal ends the loop after a
    checkpoint, on all processes in the same step, by raising Interrupted.
    """
    with alone_in(run, accelerator):
        _go_on(task, run, config, accelerator, examine)


def _go_on(
    task: Task,
    run: RunFolder,
    config: LoopConfig,
    accelerator: Accelerator,
    examine: Examine | None,
) -> None:
    keeper = CheckpointManager(task, run, config, accelerator)
    images = keeper.resume()
    start_trackers(accelerator, config.trackers, run, images)
    main = accelerator.is_main_process
    accumulator, batches = MetricAccumulator(), task.batches(images)
    clock, counted = time.monotonic(), images
    title = f"train {run.path.name}"
    with StopSignals() as signals, Progress(config.images, title, done=images, show=main) as bar:
        agreement = Agreement(signals, accelerator)
        while images < config.images:
            task.step(next(batches), images, accumulator)
            before, images = images, images + config.batch_size
            done = images >= config.images
            stop = agreement.stop(images)

            if done or _passed(before, images, config.log_every):
                metrics = _finite(accumulator.collect(accelerator), images)
                metrics["images_per_second"] = (images - counted) / (time.monotonic() - clock)
                clock, counted = time.monotonic(), images
                for warning in examine(images, metrics) if examine else ():
                    _log.warning("%s", warning)
                if main:
                    run.log_metrics(images, metrics)
                    accelerator.log(metrics, step=images)
                    bar.show({"loss": metrics["loss"]})
            if done or _passed(before, images, config.preview_every):
                task.preview(run.samples / f"images-{images:012d}.png")
            if done or _passed(before, images, keeper.snapshot_every):
                keeper.snapshot(images)
            if done or stop or _passed(before, images, config.checkpoint_every):
                keeper.save(images)
            bar.update(config.batch_size)
            if stop:
                raise Interrupted(stop, f"saved after {images:,} of {config.images:,} images")


def _finite(metrics: dict[str, float], images: int) -> dict[str, float]:
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise JobError(
                f"The {name} before {images} images is not finite; lower optimizer.learning_rate "
                "and run again: it goes on from the last checkpoint."
            )
    return metrics


def _passed(before: int, after: int, every: float) -> bool:
    """Whether a multiple of `every` lies in (before, after]."""
    return before // every < after // every
