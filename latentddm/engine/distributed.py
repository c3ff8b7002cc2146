"""The processes of one training: how they start, share a batch, shard a network, fail together."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, broadcast_object_list
from filelock import FileLock, Timeout
from torch import Tensor, nn

from latentddm.engine.errors import JobError, UserError
from latentddm.engine.run import RunFolder
from latentddm.engine.trackers import require_trackers

_OTHERS = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)
_log = logging.getLogger("latentddm")
LONGEST_FAREWELL = 10  # seconds that the workers of a killed process may still hold its files


def start_run(
    output: Path | str,
    kind: str,
    config: Any,
    precision: str = "no",
    may_change: Collection[str] = (),
) -> tuple[RunFolder, Accelerator]:
    """The run's folder, made or entered again by the main process, and accelerate's processes.

    UserError as `RunFolder.create`, on all processes, and for trackers that are not there.
    """
    require_trackers(config.loop.trackers)
    accelerator = start_processes(precision)
    run = RunFolder(Path(output), may_change)
    on_main(accelerator, lambda: RunFolder.create(run.path, kind, config, may_change))
    return run, accelerator


def start_processes(precision: str = "no", **options: Any) -> Accelerator:
    """Accelerate's view of devices and processes; UserError if it was told to shard itself."""
    try:
        accelerator = Accelerator(mixed_precision=precision, **options)
    except ValueError as error:  # a precision that the device does not have
        raise UserError(f"precision is {precision}: {error}") from error
    if accelerator.distributed_type in _OTHERS:
        raise UserError(
            "accelerate was told to shard the network; launch without --use_fsdp or "
            "--use_deepspeed and give loop.sharded=true."
        )
    if not accelerator.is_main_process:
        _log.setLevel(logging.WARNING)  # the main process says what all of them do
    return accelerator


def process_batch_size(batch_size: int, accelerator: Accelerator) -> int:
    """The share of the global batch of one process; UserError if it does not divide."""
    processes = accelerator.num_processes
    if batch_size % processes:
        raise UserError(
            f"loop.batch_size is {batch_size}, which {processes} processes cannot share equally; "
            f"make it a multiple of {processes}."
        )
    return batch_size // processes


def on_main(accelerator: Accelerator, work: Callable[[], object]) -> None:
    """Do `work` on the main process; the others wait for it, and fail if it fails."""
    failure: UserError | JobError | None = None
    if accelerator.is_main_process:
        try:
            work()
        except (UserError, JobError) as error:
            failure = error
    if accelerator.num_processes > 1:
        message = [(type(failure) is UserError, str(failure)) if failure else None]
        told = broadcast_object_list(message)[0]
        if failure is None and told is not None:
            failure = (UserError if told[0] else JobError)(told[1])
    if failure is not None:
        raise failure


@contextmanager
def alone_in(run: RunFolder, accelerator: Accelerator) -> Iterator[None]:
    """No other command trains this run meanwhile; UserError on all processes if one does."""
    lock = FileLock(run.path / ".lock")

    def acquire() -> None:
        try:
            lock.acquire(timeout=LONGEST_FAREWELL)
        except Timeout:
            raise UserError(
                f"Another process is training {run.path}; wait for it or choose another output."
            ) from None

    on_main(accelerator, acquire)
    try:
        yield
    finally:
        lock.release()


def shard(module: nn.Module) -> None:
    """Spread the weights of `module` over all processes, in place (FSDP2: names stay as they are).

    Submodules of the classes in `_no_split_modules` (diffusers' convention) are gathered and freed
    one by one; whatever reads their weights must be within their forward pass.
    """
    from torch.distributed.fsdp import fully_shard

    units = getattr(module, "_no_split_modules", None) or ()
    for child in list(module.modules())[1:]:
        if type(child).__name__ in units:
            fully_shard(child)
    fully_shard(module)


def full_tensor(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be sharded; every process must call it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def local_tensor(tensor: Tensor) -> Tensor:
    """This process's part of a tensor that may be sharded."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def shard_like(tensor: Tensor, model: Any) -> Tensor:
    """A whole tensor, the same on every process, cut as `model` is cut; without communication."""
    if not hasattr(model, "device_mesh"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    tensor = tensor.to(local_tensor(model).device)
    return distribute_tensor(tensor, model.device_mesh, model.placements, src_data_rank=None)


def collect(accelerator: Accelerator, flags: Tensor) -> Tensor:
    """`flags` [n] of every process, [processes, n], on the device."""
    return torch.as_tensor(accelerator.gather(flags[None]))
