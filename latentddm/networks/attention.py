"""Exact attention with one of two kernels: xformers on CUDA, torch's own elsewhere.

The choice is probed once per device and number format, logged, and can be forced.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

Backend = Literal["xformers", "sdpa"]

_log = logging.getLogger("latentddm")
_forced: Backend | None = None
# A dict, as torch.compile looks through functools.cache; by device type and dtype.
_defaults: dict[tuple[str, torch.dtype], Backend] = {}


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D)) v, exact and memory-efficient. All [B, N, heads, D]."""
    backend = _forced or default_backend(query.device.type, query.dtype)
    if backend == "xformers":
        from xformers.ops import memory_efficient_attention

        return memory_efficient_attention(query, key, value)
    query, key, value = (part.transpose(1, 2) for part in (query, key, value))
    return functional.scaled_dot_product_attention(query, key, value).transpose(1, 2)


def set_attention_backend(backend: Backend | None) -> None:
    """Force a backend for this process; None restores the default of each device."""
    global _forced
    _forced = backend


def forward_derivative(
    function: Callable[..., Tensor], inputs: tuple[Tensor, ...], along: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    """f(x) and its derivative at `inputs` in the direction `along`, both without a graph.

    By forward mode, at about the price of two evaluations. Of the kernels of attention torch's
    plain formula alone has such derivatives, so it serves here whatever the backend.
    """
    with torch.no_grad(), _plain_attention():
        value, slope = torch.func.jvp(function, inputs, along)[:2]
        return value, slope


@contextmanager
def _plain_attention() -> Iterator[None]:
    before = _forced
    set_attention_backend("sdpa")
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        set_attention_backend(before)


def default_backend(device_type: str, dtype: torch.dtype) -> Backend:
    """xformers where it is installed and has a kernel for this CUDA device and dtype, else sdpa."""
    if (device_type, dtype) not in _defaults:
        _defaults[device_type, dtype] = _choose(device_type, dtype)
    return _defaults[device_type, dtype]


@torch.compiler.disable
def _choose(device_type: str, dtype: torch.dtype) -> Backend:
    backend: Backend = "sdpa"
    reason = "no CUDA device"
    if device_type == "cuda":
        reason = _xformers_problem(dtype)
        backend = "sdpa" if reason else "xformers"
    number_format = str(dtype).removeprefix("torch.")
    _log.info("attention in %s: %s%s", number_format, backend, f" ({reason})" if reason else "")
    return backend


def _xformers_problem(dtype: torch.dtype) -> str:
    """Why xformers cannot be used on the CUDA device; empty if it can."""
    try:
        from xformers.ops import memory_efficient_attention

        probe = torch.randn(1, 16, 2, 32, device="cuda", dtype=dtype, requires_grad=True)
        memory_efficient_attention(probe, probe, probe).sum().backward()
    except NotImplementedError:  # a build for another CUDA has no kernel at all
        return "this build of xformers has no kernel for it; see `python -m xformers.info`"
    except Exception as error:  # a missing package, or a broken one
        return f"xformers is not usable: {type(error).__name__}"
    return ""
