"""Training of an autoencoder, and its dry run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from autoencoder.images import ImageSource, open_source
from autoencoder.perceptual import SMALLEST_SIZE
from autoencoder.sources.naming import public_name
from autoencoder.training.config import AutoencoderConfig
from autoencoder.training.discriminator import build_discriminator, smallest_size
from autoencoder.training.network import build_network
from autoencoder.training.task import AutoencoderTask
from latentddm.engine.config import require_values, to_yaml
from latentddm.engine.distributed import start_processes, start_run
from latentddm.engine.dry_run import SECONDS, DryRun, dry_run
from latentddm.engine.ema import require_average
from latentddm.engine.errors import UserError
from latentddm.engine.loop import run_loop
from latentddm.engine.task import ENGINE_KEYS_THAT_MAY_CHANGE, single_phase

RUN_KIND = "autoencoder"
KEYS_THAT_MAY_CHANGE = (*ENGINE_KEYS_THAT_MAY_CHANGE, "loss.perceptual_file", "workers")


def train_autoencoder(config: AutoencoderConfig, source: ImageSource | None = None) -> Path:
    """Train or resume the run at `config.output`; returns the folder of the trained autoencoder.

    source: images that are open already, in the place of `config.images`.
    """
    _check(config)
    source = source if source is not None else _open_images(config)
    config = replace(config, images=public_name(config.images))  # all that the run keeps of it
    network = build_network(config)
    run, accelerator = start_run(
        config.output, RUN_KIND, config, config.precision, KEYS_THAT_MAY_CHANGE
    )
    task = AutoencoderTask(config, network, source, accelerator)
    run_loop(single_phase(task, config.loop), run, config.loop, accelerator)
    accelerator.end_training()
    result = run.path / "autoencoder"
    if accelerator.is_main_process:
        task.save(result)
    accelerator.wait_for_everyone()
    return result


def describe(config: AutoencoderConfig) -> str:
    """The resolved config, sizes, and memory and speed of a few steps; writes nothing."""
    _check(config)
    source = _open_images(config)
    config = replace(config, images=public_name(config.images))
    network = build_network(config)
    lines = [to_yaml(config), f"{network.num_parameters():,} parameters"]
    if config.adversarial.weight > 0:
        discriminator = build_discriminator(config.adversarial, config.seed)
        count = sum(parameter.numel() for parameter in discriminator.parameters())
        lines.append(f"{count:,} parameters of the discriminator")
    measured = measure_training(config, source)
    return "\n".join([*lines, f"{len(source):,} images", measured.describe()])


def _open_images(config: AutoencoderConfig) -> ImageSource:
    return open_source(config.images, config.size, sample_keys=config.keys)


def measure_training(
    config: AutoencoderConfig, source: ImageSource, seconds: float = SECONDS
) -> DryRun:
    """Memory and speed of `train_autoencoder`, in steps of about `seconds`; writes nothing."""
    _check(config)
    accelerator = start_processes(config.precision)
    task = AutoencoderTask(config, build_network(config), source, accelerator)
    measured = dry_run(task, config.loop, accelerator, seconds=seconds)
    accelerator.free_memory()
    return measured


def _check(config: AutoencoderConfig) -> None:
    """UserError for a missing key, or an image size below the smallest of a term of the loss."""
    require_values(config, "images", "output")
    if config.loop.sharded:
        raise UserError("loop.sharded is for generators; leave it out of an autoencoder's config.")
    require_average(config.ema)
    needed = {}
    if config.loss.perceptual != "none":
        needed[f"loss.perceptual={config.loss.perceptual}"] = SMALLEST_SIZE
    if config.adversarial.weight > 0:
        needed[f"a discriminator of {config.adversarial.layers} layers"] = smallest_size(
            config.adversarial
        )
    for term, smallest in needed.items():
        if config.size < smallest:
            raise UserError(
                f"size is {config.size}, but {term} needs images of at least {smallest} pixels; "
                "raise size, or leave this term out."
            )
