"""A report of the speed of latentddm on the device of this machine, in pieces of minutes.

    python tools/gpu_report.py [--size small|large] [--minutes 4] [--output DIR]

Runs on any device; `small` (the default on a CPU) checks that every section works. No section
starts after the minutes are over: the same command again, on the same code, does those that are
missing or have failed. A section that fails is named with its error. Each is kept with the seconds
that it took and the load of the machine before it. Ends in gpu_report.md and gpu_report.json.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from hashlib import sha256
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
    record,
    rows_of,
    setting_of,
    table,
)
from gpu_attention import bench_attention
from gpu_flops import bench_flops
from gpu_sampling import bench_sampling
from training_steps import Setting, Step, measure

import latentddm
from latentddm.cli.arguments import find_config
from latentddm.engine.atomic_io import make_folder, read_json, write_json, write_text
from latentddm.engine.config import load_config
from latentddm.engine.devices import default_device
from latentddm.networks.unet import UNetConfig
from latentddm.training.config import TrainConfig
from latentddm.training.performance import PerformanceConfig

Results = dict[str, Any]
TOKENS = {"small": 4096, "large": 65_536}  # of an attention, positions of all samples


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=SIZES, help="default: small on a CPU, large on a GPU")
    parser.add_argument("--minutes", type=float, default=4, help="no section starts after these")
    parser.add_argument("--output", type=Path, default=Path("gpu_report"))
    arguments = parser.parse_args()
    device = default_device()
    name = arguments.size or default_size(device)
    size, tokens = SIZES[name], TOKENS[name]
    sampled = size if name == "small" else size_of_faces128(size)
    sections: dict[str, Callable[[], list[Results]]] = {
        "sampling": partial(bench_sampling, sampled, device),
        "use of the card": partial(bench_flops, size, device),
        "attention": partial(bench_attention, device, tokens),
        "ours and diffusers": partial(bench_diffusers, size, device),
        "networks": partial(bench_networks, size, device),
        "expansions and draws": partial(bench_expansions, size, device),
    }
    if device.type == "cuda":  # elsewhere compiling takes longer than it saves
        sections["sampling, compiled"] = partial(bench_sampling, sampled, device, compiled=True)
        sections["training, compiled"] = partial(bench_diffusers, size, device, compiled=True)
    sections["switches"] = partial(bench_switches, size, device)
    machine = f"{describe_machine(device)}, size {name}, code {hash_of_code()}"
    run_sections(sections, 60 * arguments.minutes, machine, arguments.output)


def size_of_faces128(size: Size) -> Size:
    """The size with the UNet and the latents of configs/faces128.yaml, 57 M parameters."""
    unet = load_config(TrainConfig, find_config("faces128.yaml")).network
    assert isinstance(unet, UNetConfig)
    return replace(size, unet=unet, shape=(4, 16, 16))


def run_sections(
    sections: dict[str, Callable[[], list[Results]]], limit: float, machine: str, output: Path
) -> None:
    """Print each section when it is done, and write all so far: a stop loses one section only.

    Sections that the folder has of the same machine are not run again.
    """
    make_folder(output)
    path = output / "gpu_report.json"
    results, conditions = finished(path, machine)
    problems: dict[str, str] = {}
    print(f"# {machine}\n", flush=True)
    start = time.monotonic()
    for name, section in sections.items():
        if name in results:
            continue
        if time.monotonic() - start > limit:
            problems[name] = "not started: the time was over; run the same command again"
        else:
            began, load = time.monotonic(), os.getloadavg()[0]
            try:
                results[name] = section()
                taken = time.monotonic() - began
                conditions[name] = f"{taken:.0f} s; load {load:.1f} before"
            except Exception as error:  # the other sections are still of use
                problems[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        texts = {
            each: section_text(each, results, conditions, problems)
            for each in (*results, *problems)
        }
        print(texts[name], flush=True)
        write_text(output / "gpu_report.md", "\n".join([f"# {machine}\n", *texts.values()]))
        content = {"results": results, "conditions": conditions, "problems": problems}
        write_json(path, {"machine": machine, **content})


def finished(path: Path, machine: str) -> tuple[dict[str, list[Results]], dict[str, str]]:
    """The results of earlier calls on the same machine and code, and their conditions."""
    report = read_json(path) if path.is_file() else {}
    if report.get("machine") != machine:
        return {}, {}
    return report["results"], report["conditions"]


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
    if device.type == "cuda":
        steps["CUDA graphs"] = partial(graphed_step, size, setting)
    return rows_of(measure(steps, setting))


def graphed_step(size: Size, setting: Setting) -> Step:
    """The plain step, its forward and backward pass launched as CUDA graphs."""
    step = our_step(size, setting, 1)
    record(step)
    return step


def describe_machine(device: torch.device) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def hash_of_code() -> str:
    """Of the package's modules and of the tools: figures of other code are not kept."""
    tools, code = Path(__file__).parent, sha256()
    for path in sorted([*Path(latentddm.__file__).parent.rglob("*.py"), *tools.glob("*.py")]):
        code.update(path.read_bytes())
    return code.hexdigest()[:12]


def section_text(
    name: str,
    results: dict[str, list[Results]],
    conditions: dict[str, str],
    problems: dict[str, str],
) -> str:
    """Markdown of a section: training steps in the table of bench_train, the rest as it is."""
    if name in problems:
        return f"## {name}\n\n{problems[name]}\n"
    rows = results[name]
    body = table(rows) if "milliseconds" in rows[0] else plain_table(rows)
    return f"## {name}\n\n{conditions[name]}\n\n{body}"


def plain_table(rows: list[Results]) -> str:
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for row in rows:
        cells = [f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
