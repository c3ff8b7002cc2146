"""The commands of tools/experiment.py, by the sizes of its plan."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

from experiment_plan import AUTOENCODER, COMPARISON, LATENTS, PLAIN, Plan
from experiment_rates import OF_SPACE
from stages import Stage

from autoencoder.models import Autoencoder
from autoencoder.training import AutoencoderConfig
from latentddm.cli.arguments import find_config
from latentddm.demo import DemoConfig
from latentddm.demo.sizing import fitting_views, shortened, whole_if_small, widened
from latentddm.engine.atomic_io import write_text
from latentddm.engine.config import load_config, to_yaml
from latentddm.engine.devices import default_device
from latentddm.inference.xi_scale import cut_scales, has_many_numbers, read_scales, scales_of
from latentddm.networks.unet import UNetConfig
from latentddm.training.config import TrainConfig
from latentddm.training.phases import Phase

SMALL_EDGE = 8  # latents of so many positions a side have the demo's network and phases
XI_SCALES = ("0.8", "1", "1:0.9:0.7:0.5", "1..0.5", "1..0.25")
EVALUATIONS = (1, 2, 4, 8)
DDM_SAMPLER = "unipc/power"
PLAIN_SAMPLERS = ("unipc/uniform", "unipc/power")  # which is better depends on the latents


def compared(rival: bool) -> tuple[list[int], list[int]]:
    """Network evaluations of each setting that is tried, and of each row of the table."""
    solver, plain = DDM_SAMPLER.partition("/")[0], len(PLAIN_SAMPLERS) if rival else 0
    scales = [read_scales(text, ":") for text in XI_SCALES]
    alike = {n: {cut_scales(scales_of(each, solver, n), n) for each in scales} for n in EVALUATIONS}
    tried = [steps for steps in EVALUATIONS for _ in range(len(alike[steps]) + plain)]
    return tried, [steps for steps in EVALUATIONS for _ in range(1 + plain)]


def on_cuda() -> bool:
    return default_device().type == "cuda"


def autoencoder_config(options: argparse.Namespace) -> AutoencoderConfig:
    """The training of an autoencoder for this device; its number of images comes from the plan."""
    name, *overrides = _autoencoder_arguments(options)
    return load_config(AutoencoderConfig, find_config(name), overrides)


def _autoencoder_arguments(options: argparse.Namespace) -> list[str]:
    """The config and the overrides of train-autoencoder."""
    file = options.perceptual_file
    return [
        "faces128_autoencoder.yaml" if on_cuda() else "autoencoder_f8_small.yaml",
        *(f"images={json.dumps(options.images)}", f"size={options.size}"),
        f"output={json.dumps(str(options.output / 'autoencoder'))}",
        *([f"loss.perceptual_file={json.dumps(file)}"] if file else []),
    ]


def generator_config(options: argparse.Namespace, autoencoder: Autoencoder) -> TrainConfig:
    """Network and phases for the latents; the channels and the images come from the plan."""
    edge = options.size // autoencoder.factor
    shape = (autoencoder.latent_channels, edge, edge)
    if edge <= SMALL_EDGE:
        config = load_config(DemoConfig, find_config("demo_own.yaml")).generator
    else:
        config = load_config(TrainConfig, find_config("faces128.yaml"))
    network = config.network
    assert isinstance(network, UNetConfig)
    if not has_many_numbers(shape):
        network = replace(network, noise="white", gaussian_mean=False)
    return replace(
        fitting_views(config, shape),
        network=whole_if_small(network, edge),
        store=str(options.output / "store"),
        precision="bf16" if on_cuda() else "no",  # CPUs emulate bf16, many times slower
    )


def stage_of(name: str, plan: Plan, options: argparse.Namespace) -> Stage:
    """The command of a stage of these sizes."""
    out: Path = options.output
    latentddm = [sys.executable, "-m", "latentddm"]
    if name == COMPARISON:
        return comparison(plan, options)
    if name == AUTOENCODER:
        sized = f"loop.images={plan.autoencoder_images}"
        command = ["train-autoencoder", *_autoencoder_arguments(options), sized]
    elif name == LATENTS:
        reference = options.autoencoder or str(out / "autoencoder" / "autoencoder")
        command = ["encode", "--images", options.images, "--size", str(options.size), "--flips"]
        command += ["--num", str(plan.images), "--autoencoder", reference]
        command += ["--output", str(out / "store")]
    else:
        command = ["train", str(training_config(name, plan, out))]
    return Stage(name, [*latentddm, *command])


def training_config(name: str, plan: Plan, out: Path) -> Path:
    """Write the config of the DDM, or of plain diffusion on as many images; returns its path."""
    config = load_config(TrainConfig, out / "generator.yaml")
    mean, draws = config.phases
    phases: tuple[Phase, ...] = (
        shortened(mean, plan.plain_images),
        shortened(draws, plan.ddm_images),
    )
    run = "ddm"
    if name == PLAIN:
        phases, run = (shortened(mean, plan.seen),), "plain"
    loop = replace(
        config.loop,
        log_every=max(plan.seen // 40, 1),
        preview_every=max(plan.seen // 4, 1),
        checkpoint_every=max(plan.seen // 8, 1),
    )
    network = widened(config.network, plan.channels)
    sized = replace(config, network=network, phases=phases, loop=loop, output=str(out / run))
    path = out / f"{run}.yaml"
    write_text(path, to_yaml(sized))
    return path


def comparison(plan: Plan, options: argparse.Namespace) -> Stage:
    """The DDM, and plain diffusion by UniPC, against reconstructions of the images."""
    out: Path = options.output
    methods = [f"DDM={out / 'ddm'}:{DDM_SAMPLER}"]
    methods += [] if options.alone else [f"plain={out / 'plain'}:{','.join(PLAIN_SAMPLERS)}"]
    command = [
        *(sys.executable, str(Path(__file__).with_name("compare.py"))),
        *(part for method in methods for part in ("--method", method)),
        *("--reference", options.images, "--reconstructed"),
        *("--reference-images", str(plan.samples), "--samples", str(plan.trial_samples)),
        *("--confirm", str(plan.samples)),
        *("--features", plan.features, "--metrics", ",".join(OF_SPACE[plan.features])),
        *("--evaluations", ",".join(map(str, EVALUATIONS)), "--churn", "0", "--safety", "0"),
        *("--xi-scales", ",".join(XI_SCALES), "--output", str(out / "comparison")),
        "--keep-best",
    ]
    return Stage(COMPARISON, command)
