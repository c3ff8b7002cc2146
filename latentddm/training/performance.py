"""How a network is made to train faster or in less memory; none of it changes what is trained."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch

from latentddm.engine.errors import UserError
from latentddm.engine.trainable_module import TrainableModule
from latentddm.networks.attention import default_backend
from latentddm.networks.unet import UNet


@dataclass(frozen=True, kw_only=True)
class PerformanceConfig:
    """Speed and memory. tools/bench_train.py and tools/gpu_report.py measure each of them."""

    two_pass: bool = False  # one particle at a time: the memory of one draw, 4/3 of the work
    checkpointing: bool = False  # compute feature maps again in the backward pass: less memory
    channels_last: bool | None = None  # None: on CUDA
    compile: bool = False  # torch.compile: minutes at the start, faster steps on CUDA
    cuda_graphs: bool = False  # launch a pass at once, not kernel by kernel: for small networks


NUMBER_FORMATS = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Of matrix products and attention, by `precision`."""

PERFORMANCE_KEYS_THAT_MAY_CHANGE = tuple(
    f"performance.{field.name}" for field in fields(PerformanceConfig)
)


def apply_performance(network: UNet, config: PerformanceConfig, device: torch.device) -> None:
    """Switch on what `config` says; the weights and their names stay as they are."""
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


def record_cuda_graphs(trainable: TrainableModule, draws: int, shape: tuple[int, int, int]) -> None:
    """Record a network's passes in training, of latents of `shape`, as two CUDA graphs.

    A step of a small network is the time in which Python launches its kernels one by one; a graph
    is launched as a whole. It repeats the kernels that were recorded, with the weights where they
    lie, on numbers of the same shapes; a network that evaluates runs as before. UserError where
    a step is more than that.
    """
    network, accelerator = trainable.network, trainable.accelerator
    assert isinstance(network, UNet)
    if accelerator.device.type != "cuda":
        raise UserError("performance.cuda_graphs needs a CUDA device and there is none here.")
    unrepeated = {
        "several processes": accelerator.num_processes > 1,
        "loop.micro_batches": trainable.loop.micro_batches > 1,
        "network.dropout": network.config["dropout"] > 0,
        "performance.two_pass": network.one_draw_at_a_time,
        "performance.checkpointing": network.gradient_checkpointing,
    }
    for what, asked in unrepeated.items():
        if asked:
            raise UserError(
                f"performance.cuda_graphs does not go with {what}; leave one of the two out."
            )
    batch = trainable.loop.batch_size
    arguments = [
        torch.zeros(*size, device=accelerator.device)
        for size in ((batch, *shape), (batch,), (batch, draws, *shape))  # x_t, t, xi
    ]
    if network.config["classes"]:
        arguments.append(arguments[1].long())
    torch.cuda.make_graphed_callables(network, tuple(arguments))


def describe_performance(config: PerformanceConfig, precision: str, device: torch.device) -> str:
    """One line for the log: what is on."""
    switches = {
        "two-pass gradient": config.two_pass,
        "gradient checkpointing": config.checkpointing,
        "channels_last": _channels_last(config, device),
        "torch.compile": config.compile,
        "CUDA graphs": config.cuda_graphs,
        "TF32": device.type == "cuda" and torch.backends.cuda.matmul.allow_tf32,
    }
    on = [name for name, is_on in switches.items() if is_on]
    number_format = {"no": "float32"}.get(precision, f"{precision} autocast")
    attention = default_backend(device.type, NUMBER_FORMATS[precision])
    return f"{device.type}, {number_format}; attention {attention}; {', '.join(on) or 'plain'}"


def _channels_last(config: PerformanceConfig, device: torch.device) -> bool:
    chosen = config.channels_last
    return device.type == "cuda" if chosen is None else chosen
