"""Model FLOP/s of training steps as a share of a card's peak: a part of gpu_report.py."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from bench_train import EXPANSIONS, Size, our_step, record, setting_of
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from training_steps import Step, seconds

from latentddm.networks.attention import set_attention_backend
from latentddm.networks.network import NetworkConfig

DRAWS = (1, 8)
PEAKS = {  # dense bfloat16 FLOP/s, by words of the device's name; NVIDIA's data sheets
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}


def peak_of(name: str) -> float | None:
    """The dense bfloat16 peak of a device by its name; None for an unknown one."""
    found = (peak for words, peak in PEAKS.items() if re.search(rf"\b{words}\b", name))
    return next(found, None)


def bench_flops(size: Size, device: torch.device) -> list[dict[str, Any]]:
    """Each expansion of the UNet and two DiTs, with 1 and 8 draws, one after the other.

    On CUDA each as Python launches its kernels, and as CUDA graphs, training's default.
    """
    setting = setting_of(size, device)
    networks: dict[str, NetworkConfig] = {
        f"UNet, {place}": replace(size.unet, expansion=place) for place in EXPANSIONS
    }
    networks["DiT"] = size.dit
    networks["DiT, half of the blocks per draw"] = replace(
        size.dit, draw_blocks=size.dit.blocks // 2
    )
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    peak = peak_of(card)
    rows = []
    for network, config in networks.items():
        for draws in DRAWS:
            step, name = our_step(size, setting, draws, config), f"{network}, m = {draws}"
            flops = count_flops(step)
            rows.append(_row(name, step, flops, peak))
            if device.type == "cuda":
                record(step)
                rows.append(_row(f"{name}, CUDA graphs", step, flops, peak))
            del step
    return rows


def _row(variant: str, step: Step, flops: float, peak: float | None) -> dict[str, Any]:
    setting = step.setting
    each = min(seconds(step, setting.device) for _ in range(setting.rounds))
    return {
        "variant": variant,
        "images_per_second": setting.batch / each,
        "gflop_per_image": flops / setting.batch / 1e9,
        "tflop_per_second": flops / each / 1e12,
        "share_of_peak": flops / each / peak if peak else "-",
    }


def count_flops(step: Callable[[], object]) -> float:
    """FLOPs of the products of a step: matrices, convolutions, attention; forward and backward.

    Attention through the plain formula, whose products the counter knows on every device.
    """
    set_attention_backend("sdpa")
    counter = FlopCounterMode(display=False)
    try:
        with counter, sdpa_kernel(SDPBackend.MATH):
            step()
    finally:
        set_attention_backend(None)
    return float(counter.get_total_flops())
