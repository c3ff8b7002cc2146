"""A network in training: wrapping for several processes, optimizer, averages, guarded step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from latentddm.engine.distributed import full_tensor, process_batch_size, replicated, shard
from latentddm.engine.ema import Averages, EMAConfig
from latentddm.engine.errors import UserError
from latentddm.engine.nonfinite_guard import NonfiniteGuard
from latentddm.engine.optimizer import OptimizerConfig, learning_rate, make_optimizer
from latentddm.engine.task import LoopConfig, Span


class GradientNorm(NamedTuple):
    """The norm of a step's gradient and its weight in the mean, scalars on the device.

    The weight is 0, and the norm too, for a step that the gradient scaler of fp16 skips.
    """

    norm: Tensor
    weight: Tensor


class TrainableModule:
    """One network in one phase of a training, with its optimizer, averages and guard.

        for part in trainable.micro_batches(len(batch)):
            trainable.backward(loss_of(trainable.wrapped, batch[part]))
        accumulator.add("gradient_norm", *trainable.step(images))

    network: the raw network, whose state dict has no prefixes; wrapped: the module to call in
    training; averages: the moving averages of its weights, none without an `EMAConfig`. Learning
    rate and averages are functions of the images seen in the phase, `span`.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: OptimizerConfig,
        loop: LoopConfig,
        span: Span,
        accelerator: Accelerator,
        ema: EMAConfig | None = None,
    ) -> None:
        share = process_batch_size(loop.batch_size, accelerator)
        if share % loop.micro_batches:
            raise UserError(
                f"loop.micro_batches is {loop.micro_batches}, no divisor of the {share} images of "
                "a process; change it or loop.batch_size."
            )
        self.config, self.loop, self.accelerator = optimizer, loop, accelerator
        self.span = span
        self.network = network.to(accelerator.device)
        self.averages = Averages(self.network, ema if ema is not None else EMAConfig(widths=()))
        if loop.sharded:
            _check_sharded(accelerator)
            shard(self.network)
            for average in self.averages.tracked:
                shard(average.module, trained=False)
        self.optimizer = make_optimizer(self.network, optimizer)
        self.wrapped: nn.Module = (
            self.network if loop.sharded else replicated(self.network, accelerator)
        )
        self._prepared = accelerator.prepare_optimizer(self.optimizer)
        self._guard = NonfiniteGuard(accelerator, loop.batch_size, loop.sharded)
        self._losses_finite: list[Tensor] = []
        self._kept = False

    def keep_gradients(self) -> None:
        """Zero the gradients between steps and do not free them.

        For backward passes that return memory of their own each time, as CUDA graphs do: freed
        gradients would become that memory itself, and the next micro-batch overwrite the sum.
        """
        self._kept = True
        for parameter in self.network.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)

    def micro_batches(self, share: int) -> Iterator[slice]:
        """Slices of this process's batch; gradients are synchronised at the last one only."""
        size = share // self.loop.micro_batches
        for start in range(0, share, size):
            last = start + size >= share
            with nullcontext() if last else self.accelerator.no_sync(self.wrapped):
                yield slice(start, start + size)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a micro-batch's mean loss, or of one summand of it."""
        self._losses_finite.append(torch.isfinite(loss.detach()).all())
        self.accelerator.backward(loss / self.loop.micro_batches)

    def step(self, images: int) -> GradientNorm:
        """One optimizer step after the run's first `images`; returns the norm of the gradient.

        JobError on every process, weights unchanged, if a loss or gradient of any process is not
        finite.
        """
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = self.accelerator.clip_grad_norm_(parameters, self.config.clip_norm)
        norm = full_tensor(norm)
        loss_finite = torch.stack(self._losses_finite).all()
        self._losses_finite.clear()
        self._guard.before_step(self.optimizer, loss_finite, torch.isfinite(norm), images)

        seen = images - self.span.start
        rate = learning_rate(self.config, seen, self.span.length)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self._prepared.step()
        self._prepared.zero_grad(set_to_none=not self._kept)
        self.averages.update(seen + self.loop.batch_size, self.loop.batch_size)
        return self._counted(norm)

    def _counted(self, norm: Tensor) -> GradientNorm:
        """The norm as it is; of fp16, whose overflow is no failure, where it is finite."""
        if self.accelerator.scaler is None:
            return GradientNorm(norm, torch.ones_like(norm))
        finite = torch.isfinite(norm)
        return GradientNorm(torch.where(finite, norm, 0), finite)


def _check_sharded(accelerator: Accelerator) -> None:
    """UserError where weights cannot be sharded."""
    if accelerator.num_processes == 1:
        raise UserError(
            "loop.sharded is true, but there is one process; use `accelerate launch`, or set it to "
            "false."
        )
    if accelerator.mixed_precision == "fp16":
        raise UserError("loop.sharded excludes precision=fp16; choose precision=bf16.")
