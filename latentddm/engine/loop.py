"""The training loop of every trainer: image count, log, previews, checkpoints, resume, stop.

A training has one or several phases, one after the other, each of one `Task`; networks, losses and
data are the task's. All processes run the same loop and take the same decisions; the main one
writes the files.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator

from latentddm.engine.checkpoint import Checkpoint
from latentddm.engine.checkpoint_manager import CheckpointManager
from latentddm.engine.distributed import exclusive, lost_processes
from latentddm.engine.errors import Interrupted, JobError
from latentddm.engine.metric_accumulator import MetricAccumulator
from latentddm.engine.nonfinite_guard import NONFINITE_REMEDY
from latentddm.engine.progress import Progress
from latentddm.engine.run import RunFolder
from latentddm.engine.signals import Agreement, StopSignals
from latentddm.engine.task import Examine, LoopConfig, PhaseOfTask, Task
from latentddm.engine.trackers import start_trackers

_log = logging.getLogger("latentddm")


def run_loop(
    phases: Sequence[PhaseOfTask], run: RunFolder, config: LoopConfig, accelerator: Accelerator
) -> None:
    """Train all phases, from the newest valid checkpoint if there is one.

    Afterwards the task of the last phase has the final state of the run, also if the run had been
    finished before. After a signal all processes save a checkpoint in the same step and raise
    Interrupted; JobError if another process is lost.
    """
    with lost_processes(), exclusive(run, accelerator):
        manager = CheckpointManager(run, config, accelerator)
        newest = manager.rewind_to_newest()
        images, total = 0 if newest is None else newest.images, phases[-1].span.end
        if newest is not None and images < total:
            manager.require_same_numbers(newest)
        start_trackers(accelerator, config.trackers, run, images)
        title, main = f"train {run.path.name}", accelerator.is_main_process
        with StopSignals() as signals, Progress(total, title, done=images, show=main) as bar:
            loop = _Loop(run, config, accelerator, manager, Agreement(signals, accelerator), bar)
            for number, phase in enumerate(phases):
                if images >= phase.span.end and phase is not phases[-1]:
                    continue
                begins = images == phase.span.start
                task = phase.make(newest if begins else None)
                if newest is not None:
                    manager.load_scaler(newest)
                    if not begins:
                        manager.load(newest, task)
                if images < phase.span.end:
                    newest = loop.train(task, phase, number, images, total)
                    images = newest.images
                accelerator.free_memory()  # the next phase wraps a network of its own


@dataclass(frozen=True)
class _Loop:
    """The state that all phases of one run share."""

    run: RunFolder
    config: LoopConfig
    accelerator: Accelerator
    manager: CheckpointManager
    agreement: Agreement
    bar: Progress

    def train(
        self, task: Task, phase: PhaseOfTask, number: int, images: int, total: int
    ) -> Checkpoint:
        """Train one phase from `images` seen to its end; returns its last checkpoint."""
        batches = task.batches(images)
        try:
            return self._train(task, batches, phase, number, images, total)
        finally:
            # Not left to the traceback of an error, which would keep worker processes alive.
            getattr(batches, "close", lambda: None)()

    def _train(
        self,
        task: Task,
        batches: Iterator[Any],
        phase: PhaseOfTask,
        number: int,
        images: int,
        total: int,
    ) -> Checkpoint:
        config, span = self.config, phase.span
        snapshots = task.averages.config.snapshots
        snapshot_every = span.length / snapshots if snapshots else math.inf
        accumulator = MetricAccumulator()
        clock, counted = _Clock.start(self.accelerator), images
        while True:
            task.step(next(batches), images, accumulator)
            before, images = images, images + config.batch_size
            done = images >= span.end
            stop = self.agreement.stop(images)

            if done or _passed(before, images, config.log_every):
                self._log(accumulator, images, clock.speeds(images - counted), phase.examine)
                clock, counted = _Clock.start(self.accelerator), images
            if done or _passed(before - span.start, images - span.start, snapshot_every):
                self.manager.snapshot(task, images - span.start)
            saves = done or stop > 0 or _passed(before, images, config.checkpoint_every)
            if done or _passed(before, images, config.preview_every):
                self._preview(task, images, number, saves)
            if saves:
                checkpoint = self.manager.save(task, images, number)
            self.bar.update(config.batch_size)
            if stop:
                raise Interrupted(stop, f"saved after {images:,} of {total:,} images")
            if done:
                return checkpoint

    def _preview(self, task: Task, images: int, phase: int, saves: bool) -> None:
        """Draw a preview; an error of it costs no training where a checkpoint is due anyhow.

        Before the checkpoint, so that a command that is killed in between draws it again.
        """
        try:
            task.preview(self.run.samples / f"images-{images:012d}.png")
        except Exception:
            if saves:
                self.manager.save(task, images, phase)
            raise

    def _log(
        self,
        accumulator: MetricAccumulator,
        images: int,
        speeds: dict[str, float],
        examine: Examine | None,
    ) -> None:
        metrics = _finite(accumulator.collect(self.accelerator), images) | speeds
        for warning in examine(images, metrics) if examine else ():
            _log.warning("%s", warning)
        if self.accelerator.is_main_process:
            self.run.log_metrics(images, metrics)
            self.accelerator.log(metrics, step=images)
            self.bar.show({"loss": metrics["loss"]})


@dataclass(frozen=True)
class _Clock:
    """The time, and on a CPU that of its cores for this process: other work slows the first."""

    processes: int  # of the training, which share its images evenly
    seconds: float
    core_seconds: float | None

    @classmethod
    def start(cls, accelerator: Accelerator) -> _Clock:
        core_seconds = time.process_time() if accelerator.device.type == "cpu" else None
        return cls(accelerator.num_processes, time.monotonic(), core_seconds)

    def speeds(self, images: int) -> dict[str, float]:
        """Images a second since the start, as it is logged."""
        speeds = {"images_per_second": images / (time.monotonic() - self.seconds)}
        if self.core_seconds is not None:
            spent = self.processes * (time.process_time() - self.core_seconds)
            speeds["images_per_core_second"] = images / max(spent, 1e-6)
        return speeds


def _finite(metrics: dict[str, float], images: int) -> dict[str, float]:
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise JobError(
                f"The {name} of the steps up to {images:,} images is not finite. {NONFINITE_REMEDY}"
            )
    return metrics


def _passed(before: int, after: int, every: float) -> bool:
    """Whether a multiple of `every` lies in (before, after]."""
    return before // every < after // every
