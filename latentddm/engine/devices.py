"""The default device, and the dtype of encoding and decoding on it."""

from __future__ import annotations

import torch


def default_device() -> torch.device:
    """The CUDA device, else Apple's GPU, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def encoding_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 on CUDA devices with bfloat16 arithmetic, else float32."""
    if device.type == "cuda" and torch.cuda.is_bf16_supported():
        return torch.bfloat16
    return torch.float32
