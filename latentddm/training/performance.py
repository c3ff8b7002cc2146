"""Settings for speed and memory of training; none of them changes the gradients beyond rounding."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from latentddm.engine.errors import UserError
from latentddm.engine.trainable_module import TrainableModule
from latentddm.networks.attention import default_backend, default_kernel
from latentddm.networks.dropout import RecordedMasks, place_masks
from latentddm.networks.network import Network, NetworkModel

_log = logging.getLogger("latentddm")


@dataclass(frozen=True, kw_only=True)
class PerformanceConfig:
    """Speed and memory; tools/bench_train.py and tools/gpu_report.py measure each setting."""

    two_pass: bool = False  # one draw at a time: the memory of one, 4/3 of the work
    checkpointing: bool = False  # recompute activations in the backward pass: less memory
    channels_last: bool | None = None  # None: on CUDA
    compile: bool = False  # torch.compile: minutes at the start, faster steps on CUDA
    cuda_graphs: bool | None = None  # launch a pass as a whole; None: on CUDA, where it can be


NUMBER_FORMATS = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Of matrix products and attention, by `precision`."""

PERFORMANCE_KEYS_THAT_MAY_CHANGE = tuple(
    f"performance.{field.name}" for field in fields(PerformanceConfig)
)


def apply_performance(network: Network, config: PerformanceConfig, device: torch.device) -> None:
    """Apply the settings to a network; its weights and their names stay as they are."""
    network.one_draw_at_a_time = config.two_pass
    if config.checkpointing:
        network.enable_gradient_checkpointing()
    # Of feature maps only: weights in that format could be neither sharded nor resumed as they are.
    if _channels_last(config, device):
        network.memory_format = torch.channels_last
    for dtype in NUMBER_FORMATS.values():
        default_backend(device.type, dtype)  # chosen now: a compiled step could not probe
    if config.compile:
        network.compile()


def record_cuda_graphs(
    trainable: TrainableModule,
    draws: int,
    shape: tuple[int, int, int],
    config: PerformanceConfig,
) -> RecordedMasks | None:
    """Record the passes of a network in training as two CUDA graphs, for latents of `shape`.

    draws: m of each x_t, 0 for passes without xi. A step of a small network takes as long as Python
    needs to launch its kernels one by one; a graph launches them at once, on the same weights and
    shapes. Other arguments, and evaluation, run as before. Call it once for each network.

    Returns the dropout masks that the graphs read, to be refilled before each pass; None without
    dropout or graphs. If graphs are impossible, `cuda_graphs: true` raises UserError or torch's
    error; the default goes without.
    """
    obstacle = _graph_obstacle(trainable, config)
    if config.cuda_graphs is False or (config.cuda_graphs is None and obstacle):
        return None
    if obstacle:
        raise UserError(f"performance.cuda_graphs is true, but {obstacle}; leave one of them out.")
    try:
        return _recorded(trainable, draws, shape)
    except RuntimeError as error:
        if config.cuda_graphs:
            raise
        reason = str(error).splitlines()[0]
        _log.warning(
            "The passes could not be recorded as CUDA graphs, and run one by one: %s", reason
        )
        return None


def _graph_obstacle(trainable: TrainableModule, config: PerformanceConfig) -> str | None:
    """What forbids CUDA graphs in a training, as a clause; None if nothing does."""
    network, accelerator = trainable.network, trainable.accelerator
    assert isinstance(network, NetworkModel)
    if accelerator.device.type != "cuda":
        return "there is no CUDA device"
    obstacles = {
        "there are several processes": accelerator.num_processes > 1,
        "network.times is 2": network.config["times"] == 2,
        "performance.two_pass is true": config.two_pass,
        "performance.checkpointing is true": config.checkpointing,
        "performance.compile is true": config.compile,
    }
    return next((clause for clause, present in obstacles.items() if present), None)


def _recorded(
    trainable: TrainableModule, draws: int, shape: tuple[int, int, int]
) -> RecordedMasks | None:
    """See `record_cuda_graphs`; a RuntimeError of the device leaves the passes as they were."""
    network, device = trainable.network, trainable.accelerator.device
    assert isinstance(network, NetworkModel)
    batch = trainable.loop.batch_size // trainable.loop.micro_batches
    masks = RecordedMasks(batch, device) if network.config["dropout"] else None
    if masks is not None:
        place_masks(network, masks)
    sizes: dict[str, tuple[int, ...]] = {"x_t": (batch, *shape), "t": (batch,)}
    if draws:
        sizes["xi"] = (batch, draws, *shape)
    examples = {name: torch.zeros(*size, device=device) for name, size in sizes.items()}
    if network.config["classes"]:
        examples["labels"] = examples["t"].long()
    replace_by_graphs(network, examples, allow_unused=not draws)  # the weights of xi
    if trainable.loop.micro_batches > 1:
        trainable.keep_gradients()
    return masks


def replace_by_graphs(
    network: nn.Module, examples: Mapping[str, Tensor], allow_unused: bool = False
) -> None:
    """Make the passes of `network` in training with tensors like `examples` two CUDA graphs.

    allow_unused: whether weights may have no part in them.
    """
    names = tuple(examples)
    recorded: Any = torch.cuda.make_graphed_callables(
        ForwardOfTensors(network, names),
        tuple(examples.values()),
        allow_unused_input=allow_unused,
    )
    replace_forward(network, names, recorded)


class ForwardOfTensors(nn.Module):
    """A network's present forward pass as a function of the tensors `names`, for a CUDA graph."""

    def __init__(self, network: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.network, self.names, self.original = network, names, network.forward

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.original(**dict(zip(self.names, tensors, strict=True)))


def replace_forward(
    network: nn.Module, names: Sequence[str], recorded: Callable[..., Tensor]
) -> None:
    """Make `recorded` the forward pass in training with exactly the arguments `names`."""
    original = network.forward

    def forward(
        x_t: Tensor,
        t: Tensor,
        xi: Tensor | None = None,
        labels: Tensor | None = None,
        s: Tensor | None = None,
    ) -> Tensor:
        given = {"x_t": x_t, "t": t, "xi": xi, "labels": labels, "s": s}
        tensors = {name: value for name, value in given.items() if value is not None}
        if network.training and tuple(tensors) == tuple(names):
            return recorded(*tensors.values())
        return original(x_t, t, xi, labels, s)

    network.forward = forward  # type: ignore[method-assign]


def describe_performance(config: PerformanceConfig, precision: str, device: torch.device) -> str:
    """One line for the log: the device, the number format and the settings that are on."""
    switches = {
        "two-pass gradient": config.two_pass,
        "gradient checkpointing": config.checkpointing,
        "channels_last": _channels_last(config, device),
        "torch.compile": config.compile,
        "CUDA graphs": bool(config.cuda_graphs),
        "CUDA graphs where possible": config.cuda_graphs is None and device.type == "cuda",
        "TF32": device.type == "cuda" and torch.backends.cuda.matmul.allow_tf32,
    }
    on = [name for name, is_on in switches.items() if is_on]
    number_format = {"no": "float32"}.get(precision, f"{precision} autocast")
    attention = default_kernel(device.type, NUMBER_FORMATS[precision])
    return f"{device.type}, {number_format}; attention {attention}; {', '.join(on) or 'plain'}"


def _channels_last(config: PerformanceConfig, device: torch.device) -> bool:
    chosen = config.channels_last
    return device.type == "cuda" if chosen is None else chosen
