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
from latentddm.report import write_report
from latentddm.training.generator import TrainConfig
from latentddm.training.objective import Objective

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
    # Of DDM. Its network's patch_size, if none is given, is the edge of the latents: one patch.
    generator: TrainConfig
    plain: Objective = field(default_factory=Objective.plain_diffusion)  # and a network without xi
    start_share: float = 0.0  # of DDM's images, the first ones, which it sees as plain diffusion
    samples: int = 1000  # for each method and number of evaluations
    steps: tuple[int, ...] = (1, 2, 4, 8, 16, 50)


def run_demo(config: DemoConfig) -> Path:
    """Run the demo, or finish one that was stopped; returns the path of report.html."""
    if not 0 <= config.start_share < 1:
        raise UserError(f"start_share must lie in [0, 1), not {config.start_share}.")
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
        "ddm": MethodResults("ddm", "DDM (energy score)", config.generator.objective),
        "plain": MethodResults("plain", "plain diffusion (DDIM)", config.plain),
    }
    chains = _trainings(config, store, edge)
    with clock.stage("Train and measure DDM and plain diffusion") as stage:
        with train_in_parallel(chains, folder) as finished:
            portraits = isinstance(source, PortraitSource)
            comparison = Comparison(
                folder, pixels, LatentStore(store), autoencoder, config.samples, portraits
            )
            for name in finished:  # the one is measured while the other is still in training
                comparison.measure(methods[name], config.steps)
        stage.detail = (
            f"{config.generator.loop.images:,} images seen by each, {config.samples:,} images for "
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


def _trainings(config: DemoConfig, store: Path, edge: int) -> dict[str, list[TrainConfig]]:
    """The runs behind each method: DDM, from a start as plain diffusion, and plain diffusion."""
    network = {"patch_size": edge, **config.generator.network}
    ddm = replace(config.generator, store=str(store), network=network)
    plain = replace(ddm, network=network | {"expansion": "none"}, objective=config.plain)

    def run(name: str, training: TrainConfig, images: int, start: str | None = None) -> TrainConfig:
        output, loop = str(store.parent / name), replace(training.loop, images=images)
        return replace(training, output=output, loop=loop, start=start)

    images = config.generator.loop.images
    first = int(config.start_share * images)
    only = [run("plain", plain, images)]
    if first == 0:
        return {"ddm": [run("ddm", ddm, images)], "plain": only}
    start = run("start", plain, first)
    return {"ddm": [start, run("ddm", ddm, images - first, start.output)], "plain": only}


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
