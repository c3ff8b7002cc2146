"""Attention kernels at the shapes of the networks: a part of gpu_report.py."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from training_steps import seconds

from latentddm.networks.attention import attention, default_kernel, set_attention_backend

POSITIONS, HEADS, CHANNELS = (64, 256, 1024, 4096), (32, 64, 128), 256
KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
XFORMERS, CHOSEN = "xformers", "sdpa"
"""xformers' operator, and the kernel that torch chooses by itself."""


def bench_attention(
    device: torch.device, tokens: int, positions: tuple[int, ...] = POSITIONS
) -> list[dict[str, Any]]:
    """Milliseconds of each kernel on `tokens` positions of all samples with CHANNELS channels.

    *_forward: without gradients, as in sampling; *_both: forward and backward, as in training.
    difference_*: of xformers' result and gradient from torch's, relative norms. used: the kernel
    that our networks take in this format on this device.
    """
    rows = []
    for count, head, dtype in product(positions, HEADS, (torch.bfloat16, torch.float32)):
        generator = torch.Generator(device).manual_seed(0)
        shape = (3, max(tokens // count, 1), count, CHANNELS // head, head)
        inputs = torch.randn(shape, generator=generator, device=device, dtype=dtype)
        row: dict[str, Any] = {
            "variant": f"{count} positions, head {head}, {str(dtype).removeprefix('torch.')}"
        }
        results: dict[str, tuple[Tensor, Tensor]] = {}
        for name in (XFORMERS, CHOSEN, *KERNELS):
            try:
                with _kernel(name):
                    results[name] = _attend(inputs)
                    row[f"{name}_forward"] = 1e3 * seconds(partial(_forward, inputs), device)
                    row[f"{name}_both"] = 1e3 * seconds(partial(_attend, inputs), device)
            except Exception:  # a kernel that lacks the device, the format or the head
                row |= {f"{name}_forward": "-", f"{name}_both": "-"}
        for part, name in enumerate(("difference_forward", "difference_backward")):
            row[name] = "-"
            if XFORMERS in results:
                ours, theirs = results[XFORMERS][part], results[CHOSEN][part]
                row[name] = float((ours - theirs).float().norm() / theirs.float().norm())
        row["used"] = str(default_kernel(device.type, dtype))
        rows.append(row)
    return rows


@contextmanager
def _kernel(name: str) -> Iterator[None]:
    set_attention_backend("xformers" if name == XFORMERS else "sdpa")
    try:
        if name in KERNELS:
            with sdpa_kernel(KERNELS[name]):
                yield
        else:
            yield
    finally:
        set_attention_backend(None)


@torch.no_grad()
def _forward(inputs: Tensor) -> Tensor:
    """The result alone."""
    return attention(*inputs.unbind(0))


def _attend(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """The result, and the gradient of its sum of squares with respect to query, key and value."""
    leaf = inputs.detach().requires_grad_()
    result = attention(*leaf.unbind(0))
    result.float().square().sum().backward()
    assert leaf.grad is not None
    return result.detach(), leaf.grad
