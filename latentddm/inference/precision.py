"""Number formats of sampling and decoding, and networks recorded as CUDA graphs.

The state x_t is float32 in every format; a format is one of products, convolutions and attention.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from latentddm.engine.devices import encoding_dtype
from latentddm.engine.errors import UserError

Precision = Literal["float32", "tf32", "bf16", "fp16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
WARM_UP = 3  # passes before a recording: libraries choose and load their kernels

Recorder = Callable[[Callable[..., Tensor], Sequence[Tensor]], Callable[..., Tensor]]


def decoder_dtype(precision: Precision | None, device: torch.device) -> torch.dtype:
    """The dtype of a decoder's weights in this format; without one, that of encoding."""
    return HALF.get(precision, torch.float32) if precision else encoding_dtype(device)


def check_precision(precision: Precision | None, device: torch.device) -> None:
    """UserError for a format that the device lacks."""
    if precision == "fp16" and device.type == "cpu":
        raise UserError("precision fp16 needs a GPU; use bf16 or float32 on a CPU.")
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise UserError("precision bf16 is not possible on this GPU; use fp16 or float32.")


@contextmanager
def arithmetic(precision: Precision | None, device_type: str) -> Iterator[None]:
    """Products, convolutions and attention in this format, in the block.

    None: torch's own setting, in which CUDA's convolutions are in TF32 and products in float32.
    Norms, exponentials and sums stay float32 in all formats (torch.autocast).
    """
    half = HALF.get(precision or "")
    if half is not None:
        # Without its cache of weights: they are in the format already, and a recorded graph could
        # not repeat the filling of a cache.
        with torch.autocast(device_type, half, cache_enabled=False):
            yield
        return
    backends: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    if precision is not None:
        for backend in backends:
            backend.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed


def convert_products(network: nn.Module, precision: Precision | None) -> None:
    """The weights of products and convolutions in the format to which autocast would convert them.

    The result is bit-equal; the conversion is spared at every evaluation.
    """
    half = HALF.get(precision or "")
    if half is not None:
        for module in network.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                module.to(half)


class EvaluatedNetwork(nn.Module):
    """A network as samplers evaluate it: in a number format, and recorded where `recorder` is set.

    Called as the network itself; the result is in x_t's dtype. A recording is made for each
    combination of arguments and shapes.
    """

    def __init__(
        self,
        network: nn.Module,
        precision: Precision | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        super().__init__()
        self.network, self.precision, self.recorder = network, precision, recorder
        self._recorded: dict[tuple[tuple[str, torch.Size], ...], Callable[..., Tensor]] = {}

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        xi: Tensor | None = None,
        labels: Tensor | None = None,
        s: Tensor | None = None,
    ) -> Tensor:
        """x_0, of xi's shape or of x_t's; arguments as of `networks.network.Network`."""
        given = {"x_t": x_t, "t": t, "xi": xi, "labels": labels, "s": s}
        tensors = {name: value for name, value in given.items() if value is not None}
        if self.recorder is None:
            return self._evaluate(**tensors)
        names = tuple(tensors)
        key = tuple((name, value.shape) for name, value in tensors.items())
        if key not in self._recorded:
            self._recorded[key] = self.recorder(
                lambda *values: self._evaluate(**dict(zip(names, values, strict=True))),
                list(tensors.values()),
            )
        return self._recorded[key](*tensors.values())

    def _evaluate(self, **tensors: Tensor) -> Tensor:
        x_t = tensors["x_t"]
        with arithmetic(self.precision, x_t.device.type):
            return self.network(**tensors).to(x_t.dtype)


@torch.no_grad()
def record_cuda_graph(
    function: Callable[..., Tensor], examples: Sequence[Tensor]
) -> Callable[..., Tensor]:
    """`function` of tensors like `examples`, its kernels launched at once and not one by one.

    For networks so small that Python's launches take longer than the kernels. The graph reads from
    and writes to memory of its own, which lives as long as the result.
    """
    inputs = [example.clone() for example in examples]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            function(*inputs)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = function(*inputs)

    def replay(*tensors: Tensor) -> Tensor:
        for kept, given in zip(inputs, tensors, strict=True):
            kept.copy_(given)
        graph.replay()
        return output.clone()

    return replay


def recorder_of(cuda_graphs: bool, device: torch.device) -> Recorder | None:
    """The recorder if graphs are asked for; UserError without a CUDA device."""
    if not cuda_graphs:
        return None
    if device.type != "cuda":
        raise UserError("--cuda-graphs needs a CUDA device and there is none here; leave it out.")
    return record_cuda_graph
