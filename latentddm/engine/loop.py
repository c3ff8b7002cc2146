"""The training loop that every trainer shares: count images, log, preview, save, resume.

What is trained is a `Task`; this file knows no network, no loss and no data.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from accelerate import Accelerator
from torch import nn
from torch.optim import Optimizer

from latentddm.engine.checkpoint import Checkpoint, newest_checkpoint, save_checkpoint
from latentddm.engine.errors import RequestError
from latentddm.engine.means import Means
from latentddm.engine.progress import Progress
from latentddm.engine.run import RunFolder

_log = logging.getLogger("latentddm")


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How long, and what happens how often; everything is counted in images."""

    images: int
    batch_size: int = 64  # over all processes
    log_every: int = 2_000
    preview_every: int = 20_000
    checkpoint_every: int = 50_000
    keep_checkpoints: int = 2


LOOP_KEYS_THAT_MAY_CHANGE = tuple(
    f"loop.{key}"
    for key in ("images", "log_every", "preview_every", "checkpoint_every", "keep_checkpoints")
)


class Task(Protocol):
    """What is trained. `modules` and `optimizers` are its whole state, by file name."""

    @property
    def modules(self) -> Mapping[str, nn.Module]: ...

    @property
    def optimizers(self) -> Mapping[str, Optimizer]: ...

    def batches(self, start: int) -> Iterator[Any]:
        """This process's batches, from `start` images seen on, for ever."""
        ...

    def step(self, batch: Any, images: int, means: Means) -> None:
        """One optimizer step on the images after the first `images`; reports into `means`."""
        ...

    def preview(self, path: Path) -> None:
        """Write a picture of what the task can do now to `path`."""
        ...


def run_loop(task: Task, run: RunFolder, config: LoopConfig, accelerator: Accelerator) -> None:
    """Train until `config.images` are seen, from the newest valid checkpoint if there is one."""
    images = _resume(task, run)
    main = accelerator.is_main_process
    means, batches = Means(), task.batches(images)
    clock, counted = time.monotonic(), images
    with Progress(config.images, f"train {run.path.name}", done=images, show=main) as progress:
        while images < config.images:
            task.step(next(batches), images, means)
            before, images = images, images + config.batch_size
            done = images >= config.images

            if done or _passed(before, images, config.log_every):
                metrics = means.collect(accelerator)
                metrics["images_per_second"] = (images - counted) / (time.monotonic() - clock)
                clock, counted = time.monotonic(), images
                if main:
                    run.log_metrics(images, metrics)
                    accelerator.log(metrics, step=images)
                    progress.show({"loss": metrics["loss"]})
            if main and (done or _passed(before, images, config.preview_every)):
                task.preview(run.samples / f"images-{images:012d}.png")
            if done or _passed(before, images, config.checkpoint_every):
                _save(task, run, images, config, accelerator)
            progress.update(config.batch_size)


def start_processes(run: RunFolder, precision: str = "no") -> Accelerator:
    """Accelerate's view of devices and processes, with TensorBoard events in the run's folder."""
    accelerator = Accelerator(
        mixed_precision=precision, log_with="tensorboard", project_dir=run.path
    )
    accelerator.init_trackers("events")
    return accelerator


def process_batch_size(batch_size: int, accelerator: Accelerator) -> int:
    """The share of the global batch of one process; RequestError if it does not divide."""
    processes = accelerator.num_processes
    if batch_size % processes:
        raise RequestError(
            f"loop.batch_size is {batch_size}, which {processes} processes cannot share equally; "
            f"make it a multiple of {processes}."
        )
    return batch_size // processes


def _resume(task: Task, run: RunFolder) -> int:
    checkpoint = newest_checkpoint(run.checkpoints)
    if checkpoint is None:
        return 0
    _load(task, checkpoint)
    run.rewind_metrics(checkpoint.images)
    _log.info("resumed from %s", checkpoint.path)
    return checkpoint.images


def _load(task: Task, checkpoint: Checkpoint) -> None:
    for name, module in task.modules.items():
        checkpoint.load_module(name, module)
    for name, optimizer in task.optimizers.items():
        checkpoint.load_optimizer(name, optimizer)


def _save(
    task: Task, run: RunFolder, images: int, config: LoopConfig, accelerator: Accelerator
) -> None:
    if accelerator.is_main_process:
        save_checkpoint(
            run.checkpoints, images, task.modules, task.optimizers, config.keep_checkpoints
        )
    accelerator.wait_for_everyone()


def _passed(before: int, after: int, every: int) -> bool:
    """Whether a multiple of `every` lies in (before, after]."""
    return before // every < after // every
