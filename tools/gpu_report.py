"""A report of the speed of latentddm on the device of this machine, in under 9 minutes.

    python tools/gpu_report.py [--size small|large] [--minutes 8] [--output DIR]

Runs on any device; `small` (the default on a CPU) checks that every section works. A section that
fails is named with its error and the rest still prints; one that would start after the time is over
is named too. Ends in gpu_report.md and gpu_report.json.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from bench_train import (
    SIZES,
    Size,
    bench_diffusers,
    bench_expansions,
    bench_networks,
    default_size,
    our_step,
    rows_of,
    setting_of,
    table,
)
from torch import Tensor
from training_steps import Step, measure, seconds

from latentddm.diffusion.sampling import sample, time_grid
from latentddm.engine.atomic_io import write_json, write_text
from latentddm.engine.devices import default_device
from latentddm.networks.attention import Backend, attention, set_attention_backend
from latentddm.networks.network import NetworkConfig, NetworkModel, make_network
from latentddm.training.performance import PerformanceConfig

Results = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=SIZES, help="default: small on a CPU, large on a GPU")
    parser.add_argument("--minutes", type=float, default=8, help="no section starts after these")
    parser.add_argument("--output", type=Path, default=Path("gpu_report"))
    arguments = parser.parse_args()
    device = default_device()
    size = SIZES[arguments.size or default_size(device)]
    sections: dict[str, Callable[[], list[Results]]] = {
        "attention": partial(bench_attention, device),
        "sampling": partial(bench_sampling, size, device),
        "ours and diffusers": partial(bench_diffusers, size, device),
        "networks": partial(bench_networks, size, device),
        "expansions and draws": partial(bench_expansions, size, device),
        "switches": partial(bench_switches, size, device),  # the last two compile: minutes
        "compiled": partial(bench_diffusers, size, device, compiled=True),
    }
    run_sections(sections, 60 * arguments.minutes, describe_machine(device), arguments.output)


def run_sections(
    sections: dict[str, Callable[[], list[Results]]], limit: float, machine: str, output: Path
) -> None:
    """Print each section when it is done, and write all so far: a stop loses one section only."""
    results: dict[str, list[Results]] = {}
    problems: dict[str, str] = {}
    print(f"# {machine}\n", flush=True)
    start = time.monotonic()
    for name, section in sections.items():
        if time.monotonic() - start > limit:
            problems[name] = "not started: the time was over"
        else:
            try:
                results[name] = section()
            except Exception as error:  # the other sections are still of use
                problems[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        print(section_text(name, results, problems), flush=True)
        parts = [section_text(each, results, problems) for each in (*results, *problems)]
        write_text(output / "gpu_report.md", "\n".join([f"# {machine}\n", *parts]))
        content = {"machine": machine, "results": results, "problems": problems}
        write_json(output / "gpu_report.json", content)


def bench_switches(size: Size, device: torch.device) -> list[Results]:
    """torch.compile, channels_last, checkpointing and bfloat16, each against the plain step."""
    setting = setting_of(size, device)
    plain = {"channels_last": False}
    switches: dict[str, dict[str, bool]] = {
        "input, m = 1": plain,
        "channels_last": {"channels_last": True},
        "checkpointing": {**plain, "checkpointing": True},
        "compile": {**plain, "compile": True},
        "compile, channels_last": {"channels_last": True, "compile": True},
    }
    steps: dict[str, Callable[[], Step]] = {
        name: partial(our_step, size, setting, 1, None, PerformanceConfig(**chosen))
        for name, chosen in switches.items()
    }
    return rows_of(measure(steps, setting))


def bench_attention(device: torch.device) -> list[Results]:
    """xformers against torch's attention: time, and agreement of results and gradients."""
    if device.type != "cuda":
        raise RuntimeError("xformers has kernels for CUDA only")
    rows = []
    for positions, dtype in ((256, torch.bfloat16), (1024, torch.bfloat16), (1024, torch.float32)):
        generator = torch.Generator(device).manual_seed(0)
        shape = (3, 32, positions, 8, 64)
        inputs = torch.randn(shape, generator=generator, device=device, dtype=dtype)
        outputs: dict[Backend, tuple[Tensor, ...]] = {}
        milliseconds: dict[Backend, float] = {}
        backends: tuple[Backend, ...] = ("sdpa", "xformers")
        for backend in backends:
            set_attention_backend(backend)
            try:
                outputs[backend] = _attend(inputs)
                milliseconds[backend] = 1e3 * seconds(partial(_attend, inputs), device)
            finally:
                set_attention_backend(None)
        forward, backward = (
            float((one - other).float().norm() / one.float().norm())
            for one, other in zip(outputs["sdpa"], outputs["xformers"], strict=True)
        )
        rows.append(
            {
                "variant": f"{positions} positions, {str(dtype).removeprefix('torch.')}",
                "sdpa_ms": milliseconds["sdpa"],
                "xformers_ms": milliseconds["xformers"],
                "difference_forward": forward,
                "difference_backward": backward,
            }
        )
    return rows


def _attend(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """The result, and the gradient of its sum of squares with respect to query, key and value."""
    leaf = inputs.detach().requires_grad_()
    result = attention(*leaf.unbind(0))
    result.float().square().sum().backward()
    assert leaf.grad is not None
    return result.detach(), leaf.grad


def bench_sampling(size: Size, device: torch.device) -> list[Results]:
    """Images per second at 4 network evaluations, bare and with an f8 decoder."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    decoder_widths = (128, 256, 512, 512) if device.type == "cuda" else (16, 16, 16, 16)
    autoencoder = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=decoder_widths,
        layers_per_block=2,
        norm_num_groups=16,
        latent_channels=size.shape[0],
    )
    autoencoder = autoencoder.to(device).eval()
    networks: dict[str, NetworkConfig] = {
        "UNet, input": size.unet,
        "UNet, output": replace(size.unet, expansion="output"),
        "DiT": size.dit,
    }
    rows = []
    for name, config in networks.items():
        network = make_network(config, size.shape).to(device).eval()
        noise = torch.randn(size.batch, *size.shape, device=device)

        def draw(decode: bool, network: NetworkModel = network, noise: Tensor = noise) -> None:
            with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, size.bf16):
                latents = sample(network, noise, time_grid(4))
                if decode:
                    autoencoder.decode(latents)

        draw(True)
        latents_only = size.batch / seconds(partial(draw, False), device, 3)
        with_decoding = size.batch / seconds(partial(draw, True), device, 3)
        rows.append(
            {
                "variant": f"{name}, 4 evaluations",
                "latents_per_second": latents_only,
                "images_per_second": with_decoding,
            }
        )
    return rows


def describe_machine(device: torch.device) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    return f"{name or device.type}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def section_text(name: str, results: dict[str, list[Results]], problems: dict[str, str]) -> str:
    """Markdown of a section: training steps in the table of bench_train, the rest as it is."""
    if name in problems:
        return f"## {name}\n\n{problems[name]}\n"
    rows = results[name]
    body = table(rows) if "milliseconds" in rows[0] else plain_table(rows)
    return f"## {name}\n\n{body}"


def plain_table(rows: list[Results]) -> str:
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for row in rows:
        cells = [f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
