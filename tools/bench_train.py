"""What a training step costs: by where the particles split off, by draws, and beside diffusers.

    python tools/bench_train.py [--size small|large] [--output DIR]

Prints markdown tables of ratios to our own network with one draw (expansion: input, m = 1), all
measured in one run. `small` fits a CPU; `large` is for a GPU, in bfloat16.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from training_steps import Setting, Step, StepCost, measure

from latentddm.engine.atomic_io import write_json, write_text
from latentddm.engine.devices import default_device
from latentddm.networks.unet import UNet
from latentddm.training.performance import PerformanceConfig, apply_performance

BASE = "input, m = 1"
PLACES = ("input", "middle", "up0", "output")


@dataclass(frozen=True)
class Size:
    """A network and its data."""

    network: dict[str, Any]
    shape: tuple[int, int, int]
    batch: int
    bf16: bool
    draws: tuple[int, ...]


SIZES = {
    "small": Size(
        {"channels": 32, "multipliers": (1, 2), "blocks": 1, "attention_levels": (1,)},
        (4, 16, 16),
        8,
        False,
        (1, 4),
    ),
    "large": Size(
        {"channels": 128, "multipliers": (1, 2, 2), "blocks": 2, "attention_levels": (1, 2)},
        (4, 32, 32),
        64,
        True,
        (1, 2, 4, 8),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=SIZES, help="default: small on a CPU, large on a GPU")
    parser.add_argument("--output", type=Path, help="folder for bench_train.md and .json")
    arguments = parser.parse_args()
    device = default_device()
    size = SIZES[arguments.size or default_size(device)]
    on_cuda = device.type == "cuda"  # elsewhere compiling takes longer than it saves
    rows = [*bench_places(size, device), *bench_diffusers(size, device, compiled=on_cuda)]
    text = table(rows)
    print(text)
    if arguments.output:
        write_text(arguments.output / "bench_train.md", text)
        write_json(arguments.output / "bench_train.json", {"rows": rows})


def default_size(device: torch.device) -> str:
    return "large" if device.type == "cuda" else "small"


def setting_of(size: Size, device: torch.device) -> Setting:
    return Setting(device, size.shape, size.batch, size.bf16)


def bench_places(size: Size, device: torch.device) -> list[dict[str, Any]]:
    """Every place where the particles may split off, by draws; two passes beside one."""
    setting = setting_of(size, device)
    steps: dict[str, Callable[[], Step]] = {}
    for place in PLACES:
        for m in size.draws:
            steps[f"{place}, m = {m}"] = partial(our_step, size, setting, m, expansion=place)
    for m in size.draws:
        light = partial(our_step, size, setting, m, expansion="middle", up_blocks=1)
        steps[f"middle, up_blocks 1, m = {m}"] = light
    two_pass = PerformanceConfig(two_pass=True)
    steps["input, m = 8, two passes"] = partial(our_step, size, setting, 8, two_pass)
    return rows_of(measure(steps, setting))


def bench_diffusers(
    size: Size, device: torch.device, compiled: bool = False
) -> list[dict[str, Any]]:
    """Our network with one draw beside diffusers' UNet2DModel of equal size; both compiled too."""
    setting = setting_of(size, device)
    steps: dict[str, Callable[[], Step]] = {
        BASE: partial(our_step, size, setting, 1),
        "diffusers UNet2DModel": partial(diffusers_step, size, setting),
    }
    if compiled:
        performance = PerformanceConfig(compile=True)
        steps["input, m = 1, compile"] = partial(our_step, size, setting, 1, performance)
        steps["diffusers UNet2DModel, compile"] = partial(diffusers_step, size, setting, True)
    return rows_of(measure(steps, setting))


def our_step(
    size: Size,
    setting: Setting,
    m: int,
    performance: PerformanceConfig | None = None,
    **changes: Any,
) -> Step:
    torch.manual_seed(0)
    network = UNet(**{"latent_channels": size.shape[0], **size.network, **changes})
    apply_performance(network, performance or PerformanceConfig(), setting.device)
    return Step(network, m, setting)


def diffusers_step(size: Size, setting: Setting, compiled: bool = False) -> Step:
    """Plain diffusion with the UNet2DModel whose number of parameters is nearest to ours."""
    with torch.device("meta"):
        wanted = UNet(latent_channels=size.shape[0], **size.network).num_parameters()
        counts = {w: unet2d(size, w).num_parameters() for w in range(16, 513, 16)}
    width = min(counts, key=lambda w: abs(counts[w] - wanted))
    torch.manual_seed(0)
    network = unet2d(size, width).to(setting.device)
    if setting.device.type == "cuda":
        network.to(memory_format=torch.channels_last)
    if compiled:
        network.compile()

    def call(x_t: Tensor, t: Tensor, xi: Tensor) -> Tensor:
        return network(x_t, 1000 * t).sample[:, None]

    return Step(network, 1, setting, call)


def unet2d(size: Size, width: int) -> Any:
    from diffusers import UNet2DModel

    multipliers, attending = size.network["multipliers"], size.network["attention_levels"]
    levels = range(len(multipliers))
    return UNet2DModel(
        in_channels=size.shape[0],
        out_channels=size.shape[0],
        layers_per_block=size.network["blocks"],
        block_out_channels=tuple(width * multiplier for multiplier in multipliers),
        down_block_types=tuple(
            "AttnDownBlock2D" if level in attending else "DownBlock2D" for level in levels
        ),
        up_block_types=tuple(
            "AttnUpBlock2D" if level in attending else "UpBlock2D" for level in reversed(levels)
        ),
        attention_head_dim=width // 2,
        norm_num_groups=8,
    )


def rows_of(costs: dict[str, StepCost]) -> list[dict[str, Any]]:
    base = costs[BASE]
    return [
        {
            "variant": name,
            "parameters": cost.parameters,
            "milliseconds": 1e3 * cost.seconds,
            "time": cost.seconds / base.seconds,
            "peak_mebibytes": cost.peak_bytes / 2**20,
            "memory": cost.peak_bytes / base.peak_bytes,
        }
        for name, cost in costs.items()
    ]


def table(rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        f"| training step | parameters | ms | x | MiB | x {BASE} |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['variant']} | {row['parameters'] / 1e6:.2f} M | {row['milliseconds']:.1f} "
            f"| {row['time']:.2f} | {row['peak_mebibytes']:.0f} | {row['memory']:.2f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
