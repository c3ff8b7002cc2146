"""Pixels at the door of a feature extractor: checked, turned to floats, resized, antialiased."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from latentddm.engine.errors import UserError

SMALLEST = 32


def check_pixels(pixels: Tensor) -> None:
    """UserError unless pixels are uint8 [N, S, S, 3] with S >= 32."""
    shape = list(pixels.shape)
    if pixels.dtype != torch.uint8 or len(shape) != 4 or shape[3] != 3 or shape[1] != shape[2]:
        raise UserError(
            f"Images for evaluation must be uint8 [N, S, S, 3], not {pixels.dtype} {shape}."
        )
    if shape[1] < SMALLEST:
        raise UserError(
            f"Images for evaluation need {SMALLEST} pixels on each side; these have {shape[1]}."
        )


def resize_pixels(pixels: Tensor, size: int, filter_name: Literal["bilinear", "bicubic"]) -> Tensor:
    """uint8 [N, S, S, 3] -> float32 [N, 3, size, size] in 0 .. 255, antialiased, not rounded."""
    check_pixels(pixels)
    channels_first = pixels.permute(0, 3, 1, 2).float()
    if channels_first.shape[-1] == size:
        return channels_first
    resized = F.interpolate(
        channels_first, (size, size), mode=filter_name, align_corners=False, antialias=True
    )
    return resized.clamp_(0, 255)
