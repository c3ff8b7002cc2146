"""Exact attention with one of two kernels: xformers on CUDA, torch's own elsewhere.

The choice is probed once per device and number format, logged with its reason, and can be forced.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

Backend = Literal["xformers", "sdpa"]


class Kernel(NamedTuple):
    """A backend, and the xformers operator that it runs or the reason why it is not xformers."""

    backend: Backend
    detail: str

    def __str__(self) -> str:
        return f"{self.backend} ({self.detail})"


_log = logging.getLogger("latentddm")
_forced: Backend | None = None
# A dict, as torch.compile looks through functools.cache; by device type and dtype.
_defaults: dict[tuple[str, torch.dtype], Kernel] = {}


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
    with torch.no_grad(), _plain_attention(), warnings.catch_warnings():
        # At its first use torch.func.jvp defines functions by torch.jit, which is deprecated.
        warnings.filterwarnings("ignore", message=".*torch.jit", category=FutureWarning)
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
    return default_kernel(device_type, dtype).backend


def default_kernel(device_type: str, dtype: torch.dtype) -> Kernel:
    """`default_backend` with the operator's name or the reason, for people."""
    if (device_type, dtype) not in _defaults:
        _defaults[device_type, dtype] = _choose(device_type, dtype)
    return _defaults[device_type, dtype]


@torch.compiler.disable
def _choose(device_type: str, dtype: torch.dtype) -> Kernel:
    kernel = Kernel("sdpa", "no CUDA device")
    if device_type == "cuda":
        kernel = _xformers_kernel(dtype)
    _log.info("attention in %s: %s", str(dtype).removeprefix("torch."), kernel)
    return kernel


def _xformers_kernel(dtype: torch.dtype) -> Kernel:
    """xformers and its operator, or torch's attention and why xformers cannot be used here."""
    try:
        from xformers.ops import fmha, memory_efficient_attention

        probe = torch.randn(1, 16, 2, 32, device="cuda", dtype=dtype, requires_grad=True)
        memory_efficient_attention(probe, probe, probe).sum().backward()
        return Kernel("xformers", _operator(fmha, probe))
    except NotImplementedError:  # a build for another CUDA has no kernel at all
        detail = "this build of xformers has no kernel for it; see `python -m xformers.info`"
    except Exception as error:  # a missing package, or a broken one
        detail = f"xformers is not usable: {type(error).__name__}"
    return Kernel("sdpa", detail)


def _operator(fmha: Any, probe: Tensor) -> str:
    """The name of the operator that xformers takes for a pass with a gradient."""
    try:
        inputs = fmha.Inputs(query=probe, key=probe, value=probe)
        return fmha.dispatch._dispatch_fw(inputs, True).NAME
    except (AttributeError, TypeError):  # a private function, which another version may lack
        return "operator not named by this version"
