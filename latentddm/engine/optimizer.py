"""The optimizer (AdamW) and its learning rate, a function of images seen."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW and its learning-rate schedule; lengths are in images seen."""

    learning_rate: float = 1e-4
    warmup_images: int = 0
    decay: Literal["constant", "cosine"] = "constant"
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.99
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        """ValueError for a number that makes no optimizer."""
        if not 0 <= self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be at least 0, not {self.learning_rate}")
        if not self.warmup_images >= 0:
            raise ValueError(f"warmup_images must be at least 0, not {self.warmup_images}")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay must be at least 0, not {self.weight_decay}")
        if not self.clip_norm > 0:
            raise ValueError(f"clip_norm must be above 0, not {self.clip_norm}; inf clips nothing")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), not {getattr(self, name)}")


def make_optimizer(module: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over the trainable parameters of `module`."""
    return torch.optim.AdamW(
        [parameter for parameter in module.parameters() if parameter.requires_grad],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        weight_decay=config.weight_decay,
        fused=True,
    )


def learning_rate(config: OptimizerConfig, images: int, total_images: int) -> float:
    """The learning rate of the step after `images` of `total_images`.

    lr (images + 1) / warmup_images during warm-up; then lr, or with decay: cosine
    lr (1 + cos(pi images / total_images)) / 2.
    """
    rate = config.learning_rate
    if images < config.warmup_images:
        return rate * (images + 1) / config.warmup_images
    if config.decay == "cosine":
        done = min(1.0, images / total_images)
        rate *= 0.5 * (1 + math.cos(math.pi * done))
    return rate
