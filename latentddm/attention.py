"""The one switch for attention kernels: xformers on CUDA, torch's own elsewhere.

The choice is probed once per device, said once in the log, and can be forced.
"""

from __future__ import annotations

import logging
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Backend = Literal["xformers", "sdpa"]

_log = logging.getLogger("latentddm")
_forced: Backend | None = None
_defaults: dict[str, Backend] = {}  # a dict, as torch.compile looks through functools.cache


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D)) v, exact and memory-efficient. All [B, N, heads, D]."""
    backend = _forced or default_backend(query.device.type)
    if backend == "xformers":
        from xformers.ops import memory_efficient_attention

        return memory_efficient_attention(query, key, value)
    query, key, value = (part.transpose(1, 2) for part in (query, key, value))
    return functional.scaled_dot_product_attention(query, key, value).transpose(1, 2)


def set_attention_backend(backend: Backend | None) -> None:
    """Force a backend for this process; None goes back to the default of each device."""
    global _forced
    _forced = backend


def default_backend(device_type: str) -> Backend:
    """xformers where it is installed and its kernel runs on this CUDA device, else sdpa."""
    if device_type not in _defaults:
        _defaults[device_type] = _choose(device_type)
    return _defaults[device_type]


@torch.compiler.disable
def _choose(device_type: str) -> Backend:
    backend: Backend = "sdpa"
    reason = "no CUDA device"
    if device_type == "cuda":
        reason = _xformers_problem()
        backend = "sdpa" if reason else "xformers"
    _log.info("attention: %s%s", backend, f" ({reason})" if reason else "")
    return backend


def _xformers_problem() -> str:
    """Why xformers cannot be used on the CUDA device; empty if it can."""
    try:
        from xformers.ops import memory_efficient_attention

        probe = torch.randn(1, 16, 2, 32, device="cuda", requires_grad=True)
        memory_efficient_attention(probe, probe, probe).sum().backward()
    except (
        Exception
    ) as error:  # a missing package, a wheel for another torch, no kernel for the GPU
        return f"xformers is not usable: {type(error).__name__}"
    return ""
