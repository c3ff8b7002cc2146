"""The cost of a training step: by network, by expansion, by draws, and beside diffusers.

    python tools/bench_train.py [--size small|large] [--output DIR]

Prints markdown tables of ratios to our UNet with one draw (expansion: input, m = 1), all measured
in one run. `small` fits a CPU; `large` is for a GPU, in bfloat16.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from training_steps import Setting, Step, StepCost, measure

from latentddm.engine.atomic_io import make_folder, write_json, write_text
from latentddm.engine.devices import default_device
from latentddm.networks.dit import DiTConfig
from latentddm.networks.network import NetworkConfig, make_network
from latentddm.networks.unet import UNetConfig
from latentddm.training.performance import (
    PerformanceConfig,
    apply_performance,
    replace_by_graphs,
)

BASE = "input, m = 1"
EXPANSIONS = ("input", "middle", "up0", "up1", "output")


@dataclass(frozen=True)
class Size:
    """A UNet, a DiT of about its number of parameters, and their data."""

    unet: UNetConfig
    dit: DiTConfig
    shape: tuple[int, int, int]
    batch: int
    bf16: bool
    draws: tuple[int, ...]


SIZES = {
    "small": Size(
        UNetConfig(channels=32, multipliers=(1, 2), blocks=1, attention_levels=(1,)),
        DiTConfig(width=96, blocks=4, head_channels=32),
        (4, 16, 16),
        8,
        False,
        (1, 4),
    ),
    "large": Size(
        UNetConfig(channels=128, multipliers=(1, 2, 2), blocks=2, attention_levels=(1, 2)),
        DiTConfig(width=384, blocks=10),
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
    rows = [
        *bench_expansions(size, device),
        *bench_networks(size, device),
        *bench_diffusers(size, device, compiled=on_cuda),
    ]
    text = table(rows)
    print(text)
    if arguments.output:
        make_folder(arguments.output)
        write_text(arguments.output / "bench_train.md", text)
        write_json(arguments.output / "bench_train.json", {"rows": rows})


def default_size(device: torch.device) -> str:
    return "large" if device.type == "cuda" else "small"


def setting_of(size: Size, device: torch.device) -> Setting:
    return Setting(device, size.shape, size.batch, size.bf16)


def bench_expansions(size: Size, device: torch.device) -> list[dict[str, Any]]:
    """Several places where the draws may split off, by draws; the mean; two passes beside one."""
    setting = setting_of(size, device)
    steps: dict[str, Callable[[], Step]] = {}
    for expansion in EXPANSIONS:
        network = replace(size.unet, expansion=expansion)
        for m in size.draws:
            steps[f"{expansion}, m = {m}"] = partial(our_step, size, setting, m, network)
    light = replace(size.unet, expansion="middle", up_blocks=1)
    for m in size.draws:
        steps[f"middle, up_blocks 1, m = {m}"] = partial(our_step, size, setting, m, light)
    steps["input, without xi"] = partial(our_step, size, setting, 0)
    two_pass = PerformanceConfig(two_pass=True)
    steps["input, m = 8, two passes"] = partial(our_step, size, setting, 8, None, two_pass)
    return rows_of(measure(steps, setting))


def bench_networks(size: Size, device: torch.device) -> list[dict[str, Any]]:
    """A DiT of about the UNet's size beside it, by draws; all of its blocks per draw, and half."""
    setting = setting_of(size, device)
    steps: dict[str, Callable[[], Step]] = {BASE: partial(our_step, size, setting, 1)}
    half = replace(size.dit, draw_blocks=size.dit.blocks // 2)
    for m in (0, *size.draws):
        draws = f"m = {m}" if m else "without xi"
        steps[f"DiT, {draws}"] = partial(our_step, size, setting, m, size.dit)
        if m > 1:
            steps[f"DiT, half of the blocks per draw, {draws}"] = partial(
                our_step, size, setting, m, half
            )
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
        steps["input, m = 1, compile"] = partial(our_step, size, setting, 1, None, performance)
        steps["diffusers UNet2DModel, compile"] = partial(diffusers_step, size, setting, True)
    return rows_of(measure(steps, setting))


def our_step(
    size: Size,
    setting: Setting,
    m: int,
    config: NetworkConfig | None = None,
    performance: PerformanceConfig | None = None,
) -> Step:
    torch.manual_seed(0)
    network = make_network(config or size.unet, size.shape)
    apply_performance(network, performance or PerformanceConfig(), setting.device)
    return Step(network, m, setting)


def record(step: Step) -> None:
    """Launch the step's forward and its backward pass as CUDA graphs, as training does on CUDA."""
    setting, names = step.setting, {"x_t": step.x0, "t": step.t}
    examples = names if step.xi is None else names | {"xi": step.xi}
    with torch.autocast(setting.device.type, torch.bfloat16, setting.bf16, cache_enabled=False):
        replace_by_graphs(step.network, examples, allow_unused=step.xi is None)


def diffusers_step(size: Size, setting: Setting, compiled: bool = False) -> Step:
    """Plain diffusion with the UNet2DModel whose number of parameters is nearest to ours."""
    with torch.device("meta"):
        wanted = make_network(size.unet, size.shape).num_parameters()
        counts = {w: unet2d(size, w).num_parameters() for w in range(16, 513, 16)}
    width = min(counts, key=lambda w: abs(counts[w] - wanted))
    torch.manual_seed(0)
    network = unet2d(size, width).to(setting.device)
    if setting.device.type == "cuda":
        network.to(memory_format=torch.channels_last)
    if compiled:
        network.compile()

    def call(x_t: Tensor, t: Tensor, xi: Tensor | None) -> Tensor:
        return network(x_t, 1000 * t).sample[:, None]

    return Step(network, 1, setting, call)


def unet2d(size: Size, width: int) -> Any:
    from diffusers import UNet2DModel

    multipliers, attending = size.unet.multipliers, size.unet.attention_levels
    levels = range(len(multipliers))
    return UNet2DModel(
        in_channels=size.shape[0],
        out_channels=size.shape[0],
        layers_per_block=size.unet.blocks,
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
