"""Saves and resumes a training: gathered from all processes, written by the main one."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator

from latentddm.engine.checkpoint import (
    Checkpoint,
    TrainingState,
    gather_module,
    gather_optimizer,
    newest_checkpoint,
    save_checkpoint,
)
from latentddm.engine.distributed import collect, on_main
from latentddm.engine.errors import UserError
from latentddm.engine.run import RunFolder
from latentddm.engine.snapshots import gather_snapshot, write_snapshot

if TYPE_CHECKING:
    from latentddm.engine.loop import LoopConfig, Task

_log = logging.getLogger("latentddm")


class CheckpointManager:
    """The checkpoints and snapshots of one run."""

    def __init__(
        self, task: Task, run: RunFolder, config: LoopConfig, accelerator: Accelerator
    ) -> None:
        self.task, self.run, self.config, self.accelerator = task, run, config, accelerator
        self.snapshots = task.averages.config.snapshots if task.averages.tracked else 0
        self.snapshot_every = config.images / self.snapshots if self.snapshots else math.inf

    def resume(self) -> int:
        """Load the newest valid checkpoint, if there is one; returns the images seen."""
        checkpoint = newest_checkpoint(self.run.checkpoints)
        self._require_agreement(0 if checkpoint is None else checkpoint.images)
        if checkpoint is None:
            return 0
        self.run.require_own(checkpoint.config, str(checkpoint.path))
        self._load(checkpoint)
        on_main(self.accelerator, lambda: self.run.rewind_metrics(checkpoint.images))
        _log.info("resumed from %s", checkpoint.path)
        return checkpoint.images

    def save(self, images: int) -> None:
        """Write a checkpoint; JobError on all processes if it cannot be written."""
        tensors = {name: gather_module(module) for name, module in self.task.modules.items()}
        for name, optimizer in self.task.optimizers.items():
            tensors[name] = gather_optimizer(optimizer)
        scaler = self.accelerator.scaler
        state = TrainingState(
            images,
            tensors,
            scaler.state_dict() if scaler is not None else {},
            self.run.read_config(),
        )
        on_main(
            self.accelerator,
            lambda: save_checkpoint(self.run.checkpoints, state, self.config.keep_checkpoints),
        )

    def snapshot(self, images: int) -> None:
        """Write a snapshot of the averages, if any are wanted."""
        if not self.snapshots:
            return
        tensors = gather_snapshot(self.task.averages)
        on_main(
            self.accelerator,
            lambda: write_snapshot(self.run.averages, images, tensors, self.snapshots),
        )

    def _require_agreement(self, images: int) -> None:
        found = torch.tensor([images], device=self.accelerator.device)
        everyone = collect(self.accelerator, found).flatten().tolist()
        if len(set(everyone)) > 1:
            raise UserError(
                f"The processes found checkpoints at {everyone} images in {self.run.checkpoints}; "
                "the output folder must lie on a file system that all machines share."
            )

    def _load(self, checkpoint: Checkpoint) -> None:
        for name, module in self.task.modules.items():
            checkpoint.load_module(name, module)
        for name, optimizer in self.task.optimizers.items():
            checkpoint.load_optimizer(name, optimizer)
        scaler = self.accelerator.scaler
        if (scaler is None) != (not checkpoint.scaler):
            raise UserError(
                f"{checkpoint.path} was saved with another precision; use the one it was "
                "trained with."
            )
        if scaler is not None:
            scaler.load_state_dict(dict(checkpoint.scaler))
