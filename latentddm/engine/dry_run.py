"""Memory and speed of a training, measured in a few steps that leave nothing on disk."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass

import torch
from accelerate import Accelerator

from latentddm.engine.distributed import local_tensor
from latentddm.engine.metric_accumulator import MetricAccumulator
from latentddm.engine.task import LoopConfig, Task

SECONDS, MOST_STEPS = 5.0, 20


@dataclass(frozen=True)
class DryRun:
    """The measurements: bytes of this process, speeds of all processes together."""

    state_bytes: int  # weights, gradients, optimizer, averages
    peak_bytes: int | None  # of the device, or of the process on a CPU; None if unknown
    steps_per_second: float
    images_per_second: float
    device: str

    def describe(self) -> str:
        """The measurements in two lines."""
        peak = f"; peak {_gigabytes(self.peak_bytes)}" if self.peak_bytes is not None else ""
        return (
            f"memory on {self.device}: {_gigabytes(self.state_bytes)} of weights, gradients, "
            f"optimizer and averages{peak}\n"
            f"{self.steps_per_second:.3g} steps/s, {self.images_per_second:,.3g} images/s"
        )


def dry_run(
    task: Task,
    config: LoopConfig,
    accelerator: Accelerator,
    first: int = 0,
    seconds: float = SECONDS,
) -> DryRun:
    """Train for about `seconds` after one warm-up step; writes nothing.

    first: images seen when the task's phase begins.
    """
    batches, accumulator = task.batches(first), MetricAccumulator()
    task.step(next(batches), first, accumulator)
    _wait(accelerator)
    steps, start = 0, time.monotonic()
    while steps < MOST_STEPS and time.monotonic() - start < seconds:
        steps += 1
        task.step(next(batches), first + steps * config.batch_size, accumulator)
        _wait(accelerator)
    speed = steps / (time.monotonic() - start)
    return DryRun(
        _state_bytes(task),
        _peak_bytes(accelerator),
        speed,
        speed * config.batch_size,
        str(accelerator.device),
    )


def _state_bytes(task: Task) -> int:
    tensors = [
        tensor for module in task.modules.values() for tensor in module.state_dict().values()
    ]
    for optimizer in task.optimizers.values():
        for group in optimizer.param_groups:
            tensors += group["params"]  # again, for their gradients, which a step has just freed
        tensors += [value for entry in optimizer.state.values() for value in entry.values()]
    return sum(local_tensor(tensor).nbytes for tensor in tensors if torch.is_tensor(tensor))


def _peak_bytes(accelerator: Accelerator) -> int | None:
    if accelerator.device.type == "cuda":
        return torch.cuda.max_memory_allocated(accelerator.device)
    if sys.platform == "linux":
        import resource

        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return None


def _wait(accelerator: Accelerator) -> None:
    if accelerator.device.type == "cuda":
        torch.cuda.synchronize(accelerator.device)


def _gigabytes(count: int) -> str:
    return f"{count / 2**30:.3g} GiB"
