"""Saving and resuming of a training: state gathered from all processes, written by the main one."""

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
from latentddm.engine.known_digests import KnownDigests
from latentddm.engine.posthoc_ema import gather_snapshot, write_snapshot
from latentddm.engine.run import RunFolder
from latentddm.engine.seeding import RANDOM_FORMAT
from latentddm.engine.task import LoopConfig, Task

_log = logging.getLogger("latentddm")


class CheckpointManager:
    """The checkpoints, and the snapshots of the averages, of one run."""

    def __init__(self, run: RunFolder, config: LoopConfig, accelerator: Accelerator) -> None:
        self.run, self.config, self.accelerator = run, config, accelerator
        self._digest = KnownDigests()

    def rewind_to_newest(self) -> Checkpoint | None:
        """Cut metrics.jsonl back to the newest valid checkpoint, and return that; None without one.

        UserError if the processes do not all find the same one, or if it is of another config.
        """
        checkpoint = newest_checkpoint(self.run.checkpoints, self._digest)
        images = 0 if checkpoint is None else checkpoint.images
        self._require_agreement(images)
        if checkpoint is not None:
            self.run.require_same_config(checkpoint.config, str(checkpoint.path))
            _log.info("resumed from %s", checkpoint.path)
        # without a checkpoint too: a run that was stopped before its first starts from scratch
        on_main(self.accelerator, lambda: self.run.rewind_metrics(images))
        return checkpoint

    def require_same_numbers(self, checkpoint: Checkpoint) -> None:
        """UserError if the training until `checkpoint` drew its random numbers in another way."""
        if checkpoint.random_format != RANDOM_FORMAT:
            raise UserError(
                f"{checkpoint.path} is of a training with random numbers of version "
                f"{checkpoint.random_format}, and this program draws version {RANDOM_FORMAT}, so "
                "that it could not go on as it began; finish it with the release that began it, or "
                f"begin another run (a generator with its weights: start={self.run.path})."
            )

    def load(self, checkpoint: Checkpoint, task: Task) -> None:
        """Load the state of a task from a checkpoint within its phase."""
        for name, module in task.modules.items():
            checkpoint.load_module(name, module)
        for name, optimizer in task.optimizers.items():
            checkpoint.load_optimizer(name, optimizer)

    def load_scaler(self, checkpoint: Checkpoint) -> None:
        """Load the state of the gradient scaler, which all phases share.

        UserError if only one of checkpoint and run has a scaler: their precision differs.
        """
        scaler = self.accelerator.scaler
        if (scaler is None) != (not checkpoint.scaler):
            raise UserError(
                f"{checkpoint.path} was saved with another precision; set the key precision as in "
                "its training."
            )
        if scaler is not None:
            scaler.load_state_dict(dict(checkpoint.scaler))

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
        folder, keep = self.run.checkpoints, self.config.keep_checkpoints
        on_main(self.accelerator, lambda: save_checkpoint(folder, state, keep, self._digest))
        return Checkpoint(
            checkpoint_path(folder, images), images, phase, state.scaler, state.config
        )

    def snapshot(self, task: Task, images: int) -> None:
        """Write a snapshot of the averages, if `ema.snapshots` > 0; images: of this phase."""
        keep = task.averages.config.snapshots
        if not keep or not task.averages.tracked:
            return
        tensors = gather_snapshot(task.averages)
        on_main(self.accelerator, lambda: write_snapshot(self.run.averages, images, tensors, keep))

    def _require_agreement(self, images: int) -> None:
        found = torch.tensor([images], device=self.accelerator.device)
        by_process = collect(self.accelerator, found).flatten().tolist()
        if len(set(by_process)) > 1:
            raise UserError(
                f"The processes found checkpoints at {by_process} images in "
                f"{self.run.checkpoints}; give an output folder that all machines share."
            )
