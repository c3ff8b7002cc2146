"""The processes of one training: start, share of a batch, sharding, collective failure."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, is_initialized
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    KwargsHandler,
    broadcast_object_list,
)
from filelock import Timeout
from torch import Tensor, nn

from latentddm.engine.errors import JobError, UserError, one_line
from latentddm.engine.locks import locked
from latentddm.engine.run import RunFolder, kind_and_config
from latentddm.engine.trackers import require_trackers

_OTHERS = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)
_log = logging.getLogger("latentddm")
LOCK_TIMEOUT = 10  # seconds; workers of a killed process may hold its files for a moment


def start_run(
    output: Path | str,
    kind: str,
    config: Any,
    precision: str = "no",
    may_change: Collection[str] = (),
) -> tuple[RunFolder, Accelerator]:
    """The run's folder, made or reopened by the main process, and accelerate's processes.

    The config replaces another one with which nothing was trained: that of a refused command.
    UserError as of `RunFolder.begin`, on all processes, for a tracker that is not installed, and
    for a batch that the processes do not divide.
    """
    require_trackers(config.loop.trackers)
    accelerator = start_processes(precision)
    process_batch_size(config.loop.batch_size, accelerator)  # refused before there is a folder
    run = RunFolder(Path(output), may_change)
    on_main(accelerator, lambda: _begin(run, kind_and_config(kind, config)))
    return run, accelerator


def _begin(run: RunFolder, config: Mapping[str, Any]) -> None:
    if run.may_be_replaced_by(config):
        with _only_command(run):
            if run.may_be_replaced_by(config):  # still, now that no other command trains it
                run.replace_config(config)
    run.begin(config)
    run.make_folders()


def start_processes(precision: str = "no", handlers: Sequence[KwargsHandler] = ()) -> Accelerator:
    """Accelerate's devices and processes; UserError if its own sharding was configured."""
    # Buffers are the same on all processes from the start, or follow reduced figures. Torch's new
    # name for the setting is one that accelerate does not know yet.
    gradients = DistributedDataParallelKwargs(broadcast_buffers=False)
    warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
    if is_initialized() and AcceleratorState().mixed_precision != precision:
        AcceleratorState._reset_state()  # of an earlier training in this process
    try:
        accelerator = Accelerator(mixed_precision=precision, kwargs_handlers=[gradients, *handlers])
    except ValueError as error:  # a precision that the device lacks
        raise UserError(
            f"precision={precision} is not possible here ({error}); use precision=no."
        ) from error
    if accelerator.distributed_type in _OTHERS:
        raise UserError(
            "accelerate is configured to shard the network; launch without --use_fsdp and "
            "--use_deepspeed, and add loop.sharded=true."
        )
    if not accelerator.is_main_process:
        _log.setLevel(logging.WARNING)  # progress is logged once, by the main process
    return accelerator


def replicated(network: nn.Module, accelerator: Accelerator) -> nn.Module:
    """The module to call in training, which averages gradients over all processes.

    Torch sums gradients in buckets and, after the first backward pass, rebuilds the buckets in the
    order in which the gradients arrived. A pass without work triggers that here: otherwise the
    first step after a resume would sum in another order than before, with other rounding.
    """
    wrapped = accelerator.prepare(network)
    if wrapped is network:
        return network
    own = vars(network).get("forward")  # accelerate's, with a mixed precision
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    network.forward = lambda: 0 * torch.stack([each.sum() for each in trained]).sum()
    wrapped().backward()
    del network.forward
    if own is not None:
        network.forward = own
    for parameter in trained:
        parameter.grad = None
    return wrapped


def process_batch_size(batch_size: int, accelerator: Accelerator) -> int:
    """Images of one process in a global batch; UserError if the processes do not divide it."""
    processes = accelerator.num_processes
    if batch_size % processes:
        raise UserError(
            f"loop.batch_size is {batch_size}, no multiple of the {processes} processes; make it "
            f"a multiple of {processes}."
        )
    return batch_size // processes


def on_main(accelerator: Accelerator, work: Callable[[], object]) -> None:
    """Run `work` on the main process; its UserError or JobError is raised on every process."""
    failure: UserError | JobError | None = None
    if accelerator.is_main_process:
        try:
            work()
        except (UserError, JobError) as error:
            failure = error
    if accelerator.num_processes > 1:
        message = [(type(failure) is UserError, str(failure)) if failure else None]
        received = broadcast_object_list(message)[0]
        if failure is None and received is not None:
            failure = (UserError if received[0] else JobError)(received[1])
    if failure is not None:
        raise failure


@contextmanager
def lost_processes() -> Iterator[None]:
    """JobError in the place of the errors of torch when the connection to a process is lost."""
    try:
        yield
    except RuntimeError as error:
        if not _is_of_connection(error):
            raise
        reason = one_line(error).split(". ")[0]
        raise JobError(
            f"The connection to another process of this training failed ({reason}): it has ended "
            "or vanished, see its log; run the same command again on every machine, it resumes "
            "from the newest checkpoint."
        ) from error


def _is_of_connection(error: RuntimeError) -> bool:
    """Whether an error is of torch.distributed, or of gloo, which has no class of its own."""
    if not torch.distributed.is_available():
        return False
    return isinstance(error, torch.distributed.DistError) or "gloo/transport" in str(error)


@contextmanager
def exclusive(run: RunFolder, accelerator: Accelerator) -> Iterator[None]:
    """A lock on the run's folder, under which its config is brought up to date.

    UserError on all processes if another command holds the lock, or has replaced the config.
    """
    with ExitStack() as stack:

        def hold() -> None:
            stack.enter_context(_only_command(run))
            run.write_own_config()

        on_main(accelerator, hold)
        yield


@contextmanager
def _only_command(run: RunFolder) -> Iterator[None]:
    """A lock on the run's folder; UserError if another command holds it.

    On a file system without locks, a warning takes its place.
    """
    with ExitStack() as stack:  # a Timeout of the block itself is not caught
        try:
            stack.enter_context(locked(run.path / ".lock", LOCK_TIMEOUT))
        except Timeout:
            raise UserError(
                f"Another process is training {run.path}; wait for it or choose another output."
            ) from None
        yield


def shard(module: nn.Module, trained: bool = True) -> None:
    """Shard the weights of `module` over all processes, in place (FSDP2: same names).

    Submodules of the classes in `_no_split_modules` (diffusers' convention) are gathered and freed
    one by one: their weights may be read within their own forward pass only. The other weights
    stay gathered for the backward pass, unless the module is not `trained`, and has none.
    """
    from torch.distributed.fsdp import fully_shard

    units = getattr(module, "_no_split_modules", None) or ()
    for child in list(module.modules())[1:]:
        if type(child).__name__ in units:
            fully_shard(child)
    fully_shard(module, reshard_after_forward=None if trained else True)


def full_tensor(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be sharded; collective: call it on every process."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def local_tensor(tensor: Tensor) -> Tensor:
    """This process's part of a tensor that may be sharded."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def shard_like(tensor: Tensor, model: Any) -> Tensor:
    """A whole tensor, equal on all processes, sharded like `model`; without communication."""
    if not hasattr(model, "device_mesh"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    tensor = tensor.to(local_tensor(model).device)
    return distribute_tensor(tensor, model.device_mesh, model.placements, src_data_rank=None)


def collect(accelerator: Accelerator, flags: Tensor) -> Tensor:
    """`flags` [n] of every process, [processes, n], on the device."""
    return torch.as_tensor(accelerator.gather(flags[None]))
