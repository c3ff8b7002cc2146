"""Saves and resumes a training: gathered from all processes, written by the main one."""

from __future__ import annotations

import logging

import torch
from accelerate import Accelerator

from latentddm.engine.checkpoint import (
    Checkpoint,
    TrainingState,
    checkpoint_path,
    gather_module,
    gather_optimizer,
    newest_checkpoint,
    save_checkpoint,
)
from latentddm.engine.distributed import collect, on_main
from latentddm.engine.errors import UserError
from latentddm.engine.posthoc_ema import gather_snapshot, write_snapshot
from latentddm.engine.run import RunFolder
from latentddm.engine.task import LoopConfig, Task

_log = logging.getLogger("latentddm")


class CheckpointManager:
    """The checkpoints and snapshots of one run."""

    def __init__(self, run: RunFolder, config: LoopConfig, accelerator: Accelerator) -> None:
        self.run, self.config, self.accelerator = run, config, accelerator

    def newest(self) -> Checkpoint | None:
        """The newest valid checkpoint, on which all processes agree; the log goes back to it."""
        checkpoint = newest_checkpoint(self.run.checkpoints)
        self._require_agreement(0 if checkpoint is None else checkpoint.images)
        if checkpoint is not None:
            images = checkpoint.images
            self.run.require_own(checkpoint.config, str(checkpoint.path))
            on_main(self.accelerator, lambda: self.run.rewind_metrics(images))
            _log.info("resumed from %s", checkpoint.path)
        return checkpoint

    def load(self, checkpoint: Checkpoint, task: Task) -> None:
        """Load the state of a task that was saved in the middle of its phase."""
        for name, module in task.modules.items():
            checkpoint.load_module(name, module)
        for name, optimizer in task.optimizers.items():
            checkpoint.load_optimizer(name, optimizer)
        self._load_scaler(checkpoint)

    def save(self, task: Task, images: int, phase: int) -> Checkpoint:
        """Write a checkpoint; JobError on all processes if it cannot be written."""
        tensors = {name: gather_module(module) for name, module in task.modules.items()}
        for name, optimizer in task.optimizers.items():
            tensors[name] = gather_optimizer(optimizer)
        scaler = self.accelerator.scaler
        state = TrainingState(
            images,
            tensors,
            phase,
            scaler.state_dict() if scaler is not None else {},
            self.run.read_config(),
        )
        folder = self.run.checkpoints
        on_main(
            self.accelerator, lambda: save_checkpoint(folder, state, self.config.keep_checkpoints)
        )
        return Checkpoint(
            checkpoint_path(folder, images), images, phase, state.scaler, state.config
        )

    def snapshot(self, task: Task, images: int) -> None:
        """Write a snapshot of the averages, if any are wanted; images: seen by the averages."""
        keep = task.averages.config.snapshots
        if not keep or not task.averages.tracked:
            return
        tensors = gather_snapshot(task.averages)
        on_main(self.accelerator, lambda: write_snapshot(self.run.averages, images, tensors, keep))

    def _require_agreement(self, images: int) -> None:
        found = torch.tensor([images], device=self.accelerator.device)
        everyone = collect(self.accelerator, found).flatten().tolist()
        if len(set(everyone)) > 1:
            raise UserError(
                f"The processes found checkpoints at {everyone} images in {self.run.checkpoints}; "
                "the output folder must lie on a file system that all machines share."
            )

    def _load_scaler(self, checkpoint: Checkpoint) -> None:
        scaler = self.accelerator.scaler
        if (scaler is None) != (not checkpoint.scaler):
            raise UserError(
                f"{checkpoint.path} was saved with another precision; use the one it was "
                "trained with."
            )
        if scaler is not None:
            scaler.load_state_dict(dict(checkpoint.scaler))
