"""The demo's path: images, autoencoder, latents, DDM beside plain diffusion, numbers, report."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from autoencoder.images import Preprocessing, open_source, read_pixels, select_at_random
from autoencoder.models import load_autoencoder
from autoencoder.sources.arrays import ArraySource
from autoencoder.sources.portraits import PortraitSource
from autoencoder.store import LatentStore, encode_store
from autoencoder.training import AutoencoderConfig, train_autoencoder
from latentddm import __version__
from latentddm.demo.clock import StageClock
from latentddm.demo.comparison import Comparison, MethodResults
from latentddm.demo.parallel_runs import train_in_parallel
from latentddm.engine.config import to_plain
from latentddm.engine.devices import default_device
from latentddm.engine.errors import UserError
from latentddm.engine.run import RunFolder
from latentddm.networks.unet import UNetConfig
from latentddm.report import write_report
from latentddm.training.config import TrainConfig
from latentddm.training.objective import PlainObjective

FEWEST_IMAGES = 64


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Everything that the demo does; configs/demo.yaml is sized for two cores."""

    images: str = "portraits"
    output: str = "demo"
    size: int = 64
    image_limit: int = 4000  # of a larger source so many are drawn at random
    workers: int = 2
    autoencoder: AutoencoderConfig
    generator: TrainConfig  # of the DDM; its network may have latents of one patch, `whole_patch`
    plain: PlainObjective = field(default_factory=PlainObjective)  # of the run beside it
    whole_patch: bool = False  # the network's patch_size is the edge of the latents: one patch
    samples: int = 1000  # for each method and number of evaluations
    steps: tuple[int, ...] = (1, 2, 4, 8, 16, 50)


def run_demo(config: DemoConfig) -> Path:
    """Run the demo, or finish one that was stopped; returns the path of report.html."""
    source = open_source(config.images, size=config.size)
    folder = RunFolder.create(Path(config.output), "demo", config).path
    store = folder / "store"
    clock = StageClock()
    preprocessing = Preprocessing(size=config.size)

    with clock.stage("Read the images") as stage:
        chosen = select_at_random(source, config.image_limit, seed=0)
        pixels, unreadable = read_pixels(chosen, preprocessing, workers=config.workers)
        stage.detail = f"{len(pixels):,} images, {len(unreadable)} unreadable"
    if len(pixels) < FEWEST_IMAGES:
        raise UserError(
            f"{source.name} holds {len(pixels)} readable images ({len(unreadable)} unreadable); "
            f"the demo needs at least {FEWEST_IMAGES}."
        )
    images = ArraySource(pixels, source.name)

    with clock.stage("Train the autoencoder") as stage:
        autoencoder_config = replace(
            config.autoencoder,
            images=source.name,
            size=config.size,
            output=str(folder / "autoencoder"),
        )
        trained = train_autoencoder(autoencoder_config, images)
        autoencoder = load_autoencoder(trained, device=default_device())
        stage.detail = f"{config.autoencoder.loop.images:,} images seen"

    with clock.stage("Encode the images") as stage:
        encode_store(
            images,
            autoencoder,
            store,
            preprocessing=preprocessing,
            workers=0,
            check=False,  # a weak autoencoder is no reason to stop here: the report says its PSNR
        )
        stage.detail = f"{len(pixels):,} latents"

    edge = config.size // autoencoder.factor
    methods = {
        "ddm": MethodResults(
            "ddm", "DDM (energy score)", config.generator.phases[-1].objective.draw_count
        ),
        "plain": MethodResults("plain", "plain diffusion (DDIM)", draws=1),
    }
    runs = _trainings(config, store, edge)
    with clock.stage("Train and measure DDM and plain diffusion") as stage:
        with train_in_parallel(runs, folder) as finished:
            portraits = isinstance(source, PortraitSource)
            comparison = Comparison(
                folder, pixels, LatentStore(store), autoencoder, config.samples, portraits
            )
            for name in finished:  # the one is measured while the other is still in training
                comparison.measure(methods[name], config.steps)
        stage.detail = (
            f"{_images_seen(config):,} images seen by each, {config.samples:,} images for "
            f"each of {len(methods) * len(config.steps)} settings"
        )

    about = {
        "name": source.name,
        "images": len(pixels),
        "size": config.size,
        "unreadable": [{"key": item.key, "reason": item.reason} for item in unreadable],
    }
    measured = comparison.to_json(list(methods.values()), config.autoencoder.loop.images)
    return write_report(folder, _report(config, clock, about) | measured)


def _trainings(config: DemoConfig, store: Path, edge: int) -> dict[str, TrainConfig]:
    """The run of each method: the DDM, and plain diffusion on as many images."""
    network = config.generator.network
    if config.whole_patch:
        if not isinstance(network, UNetConfig) or network.patch_size not in (1, edge):
            raise UserError(
                "whole_patch is true, so generator.network must be a unet without a patch_size of "
                "its own; add whole_patch=false."
            )
        network = replace(network, patch_size=edge)
    ddm = replace(
        config.generator, store=str(store), output=str(store.parent / "ddm"), network=network
    )
    first = ddm.phases[0]
    only = replace(first, images=_images_seen(config), objective=config.plain)
    plain = replace(ddm, output=str(store.parent / "plain"), phases=(only,))
    return {"ddm": ddm, "plain": plain}


def _images_seen(config: DemoConfig) -> int:
    """The images that each method sees in training."""
    return sum(phase.images for phase in config.generator.phases)


def _report(config: DemoConfig, clock: StageClock, source: dict[str, Any]) -> dict[str, Any]:
    """What the report says of the run itself."""
    return {
        "title": "latentddm demo",
        "version": __version__,
        "finished": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": _machine(),
        "source": source,
        "stages": clock.to_json(),
        "seconds": sum(stage.seconds for stage in clock.stages),
        "settings": to_plain(config),
    }


def _machine() -> dict[str, Any]:
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count() or 1,
        "device": str(default_device()),
        "torch": torch.__version__,
    }
