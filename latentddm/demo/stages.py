"""The demo's path: images, autoencoder, latents, DDM beside plain diffusion, numbers, report."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch

from autoencoder.images import ImageSource, Preprocessing, open_source
from autoencoder.models import Autoencoder, load_autoencoder
from autoencoder.sources.arrays import ArraySource
from autoencoder.sources.decoding import UnreadableImage
from autoencoder.sources.naming import public_name
from autoencoder.sources.portraits import PortraitSource
from autoencoder.store import LatentStore, encode_store
from autoencoder.training import train_autoencoder
from latentddm import __version__
from latentddm.demo.autoencoder_choice import load_chosen
from latentddm.demo.clock import StageClock
from latentddm.demo.comparison import Comparison, MethodResults
from latentddm.demo.config import DemoConfig
from latentddm.demo.parallel_runs import train_in_parallel
from latentddm.demo.preparation import prepared
from latentddm.demo.reading import read_images
from latentddm.demo.sizing import fitting_generator, sized
from latentddm.engine.config import to_plain
from latentddm.engine.cpu_threads import available_cores
from latentddm.engine.devices import default_device
from latentddm.engine.run import RunFolder
from latentddm.inference.sampler import fitting_sampler
from latentddm.report import write_report
from latentddm.training.config import TrainConfig


def run_demo(config: DemoConfig, startup: float = 10.0) -> Path:
    """Run the demo, or finish one that was stopped; returns the path of report.html.

    startup: seconds that the imports took, and will take for the processes of the trainings.
    """
    source = open_source(config.images, config.size, sample_keys=config.keys)
    config = replace(config, images=public_name(config.images))  # all that the folder keeps of it
    clock = StageClock()
    config = prepared(config, source, clock, startup)
    folder = RunFolder.create(Path(config.output), "demo", config).path
    config = sized(config)
    pixels, unreadable = _read_images(config, source, clock)
    images = _Pictures(pixels, source.name)
    autoencoder = _open_autoencoder(config, images, folder, clock)
    store = _encode(config, images, autoencoder, folder, clock)
    measured = _train_and_measure(config, source, pixels, store, autoencoder, folder, clock)
    about = {
        "name": source.name,
        "images": len(pixels),
        "available": len(source),
        "size": config.size,
        "unreadable": [{"key": item.key, "reason": item.reason} for item in unreadable],
    }
    return write_report(folder, _report(config, clock, about) | measured)


class _Pictures(ArraySource):
    """The pictures, by keys that change with their content: another selection is another store."""

    def key(self, index: int) -> str:
        return f"{index:07d}-{crc32(self.pixels[index].tobytes()):08x}"


def _read_images(
    config: DemoConfig, source: ImageSource, clock: StageClock
) -> tuple[np.ndarray, list[UnreadableImage]]:
    """Pixels of a random part of the source, [N, S, S, 3]; UserError if they are too few."""
    with clock.stage("Read the images") as stage:
        pixels, unreadable = read_images(
            source, config.image_limit, Preprocessing(size=config.size), config.workers
        )
        stage.detail = f"{len(pixels):,} images, {len(unreadable)} unreadable"
    return pixels, unreadable


def _open_autoencoder(
    config: DemoConfig, images: ArraySource, folder: Path, clock: StageClock
) -> Autoencoder:
    """The pretrained autoencoder of the plan, or the embedded one, trained on the images."""
    reference = config.plan.autoencoder if config.plan else None
    if reference is not None:
        return load_chosen(reference, config)
    with clock.stage("Train the autoencoder") as stage:
        output = str(folder / "autoencoder")
        training = replace(config.autoencoder, images=images.name, size=config.size, output=output)
        trained = train_autoencoder(training, images)
        stage.detail = f"{training.loop.images:,} images seen"
    return load_autoencoder(trained, device=default_device())


def _encode(
    config: DemoConfig,
    images: ArraySource,
    autoencoder: Autoencoder,
    folder: Path,
    clock: StageClock,
) -> LatentStore:
    with clock.stage("Encode the images") as stage:
        encode_store(
            images,
            autoencoder,
            folder / "store",
            preprocessing=Preprocessing(size=config.size),
            workers=0,
            check=False,  # a weak autoencoder is no reason to stop: its PSNR is in the report
        )
        stage.detail = f"{len(images):,} latents"
    return LatentStore(folder / "store")


def _train_and_measure(
    config: DemoConfig,
    source: ImageSource,
    pixels: np.ndarray,
    store: LatentStore,
    autoencoder: Autoencoder,
    folder: Path,
    clock: StageClock,
) -> dict[str, Any]:
    """Train the DDM and plain diffusion in parallel; the report's entries about both."""
    draws = config.generator.phases[-1].objective.draw_count
    sampler = fitting_sampler(config.generator.sampler, store.shape)
    of_mean = sampler.for_network(reads_xi=False).describe()
    methods = {
        "ddm": MethodResults("ddm", f"DDM (energy score, {sampler.describe()})", draws),
        "plain": MethodResults("plain", f"plain diffusion ({of_mean})", draws=1),
    }
    runs = _trainings(config, folder, store.shape)
    with clock.stage("Train and measure DDM and plain diffusion") as stage:
        with train_in_parallel(runs, folder) as finished:
            portraits = isinstance(source, PortraitSource)
            comparison = Comparison(folder, pixels, store, autoencoder, config, portraits)
            for name in finished:  # the one is measured while the other is still in training
                comparison.measure(methods[name], config.steps)
        stage.detail = (
            f"{_images_seen(config):,} images seen by each, {comparison.samples:,} images for "
            f"each of {len(methods) * len(config.steps)} settings"
        )
    pretrained = config.plan is not None and config.plan.autoencoder is not None
    trained = 0 if pretrained else config.autoencoder.loop.images
    return comparison.to_json(list(methods.values()), trained)


def _trainings(config: DemoConfig, folder: Path, shape: Sequence[int]) -> dict[str, TrainConfig]:
    """The run of each method: the DDM, and plain diffusion on as many images."""
    ddm = replace(
        fitting_generator(config, shape), store=str(folder / "store"), output=str(folder / "ddm")
    )
    first = ddm.phases[0]
    only = replace(first, images=_images_seen(config), objective=config.plain)
    plain = replace(ddm, output=str(folder / "plain"), phases=(only,))
    return {"ddm": ddm, "plain": plain}


def _images_seen(config: DemoConfig) -> int:
    """The images that each method sees in training."""
    return sum(phase.images for phase in config.generator.phases)


def _report(config: DemoConfig, clock: StageClock, source: dict[str, Any]) -> dict[str, Any]:
    """The report's entries about the run itself."""
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
        "cores": available_cores(),
        "device": str(default_device()),
        "torch": torch.__version__,
    }
