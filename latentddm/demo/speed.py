"""The speeds of this machine: of the autoencoder on some images, of trainings on its latents."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import torch

from autoencoder.decode import decode_latents
from autoencoder.images import Preprocessing
from autoencoder.models import Autoencoder
from autoencoder.sources.arrays import ArraySource
from autoencoder.store import LatentStore, encode_store
from latentddm.demo.config import DemoConfig
from latentddm.demo.parallel_runs import threads_of_each
from latentddm.demo.plan import WIDTHS, NetworkSpeed, Speeds, make_budget, training_images
from latentddm.demo.reading import Sample
from latentddm.demo.sizing import fitting_generator, widened
from latentddm.training.config import TrainConfig
from latentddm.training.generator import measure_phases

T = TypeVar("T")

TRAININGS = 2  # a DDM, and plain diffusion beside it
SECONDS = 1.0  # of measured steps, for each phase of each network
STEP_COST = 4.0  # a training step of an autoencoder, in encodings and decodings of its images


def measure_speeds(config: DemoConfig, autoencoder: Autoencoder, sample: Sample) -> Speeds:
    """Seconds for each image of all stages but the training of the generators."""
    encode, decode = codec_speeds(autoencoder, sample.pixels)
    trained = config.plan is not None and config.plan.autoencoder is None
    return Speeds(
        read=sample.seconds,
        encode=encode,
        decode=decode,
        autoencoder=STEP_COST * (encode + decode) if trained else 0.0,
        together=TRAININGS if threads_of_each(TRAININGS) else 1,
    )


def codec_speeds(autoencoder: Autoencoder, pixels: torch.Tensor) -> tuple[float, float]:
    """Seconds of encoding and of decoding an image, on some of them, uint8 [N, S, S, 3]."""
    count = len(pixels)
    autoencoder.encode(pixels[:1])  # the first call prepares kernels
    latents, encode = timed(lambda: autoencoder.encode(pixels).cpu())
    autoencoder.decode(latents[:1])
    _, decode = timed(lambda: decode_latents(latents, autoencoder))
    return encode / count, decode / count


def measure_networks(
    config: DemoConfig, autoencoder: Autoencoder, sample: Sample, available: int, speeds: Speeds
) -> Speeds:
    """The speeds with those of the networks, from the narrowest on to the widest of use.

    A network for which the time of the narrower one is too short already is not measured.
    """
    assert config.minutes is not None
    budget = make_budget(config.minutes, available, len(config.steps), speeds)
    threads = threads_of_each(TRAININGS)
    with TemporaryDirectory(prefix="latentddm-") as folder, _threads(threads), quiet():
        store = sample_store(Path(folder), sample.pixels, autoencoder, config.size)
        shape = LatentStore(store).shape
        networks: list[NetworkSpeed] = []
        for channels, fewest in WIDTHS:
            if networks:
                images = training_images(config.minutes, budget, networks[-1], speeds.together)
                if images < fewest:
                    break
            run = _training(config, channels, shape, store, Path(folder) / "run")
            networks.append(network_speed(run, channels))
    return replace(speeds, networks=tuple(networks))


def sample_store(folder: Path, pixels: torch.Tensor, autoencoder: Autoencoder, size: int) -> Path:
    """A store of a few images, in `folder`: a training's speed does not depend on their number."""
    store = folder / "store"
    encode_store(
        ArraySource(pixels.numpy(), "sample"),
        autoencoder,
        store,
        preprocessing=Preprocessing(size=size),
        workers=0,
        check=False,
        show_progress=False,
    )
    return store


def network_speed(training: TrainConfig, channels: int) -> NetworkSpeed:
    """The speed of a training of two phases, plain diffusion and a DDM, in a few steps of each."""
    plain, ddm = (1 / each.images_per_second for each in measure_phases(training, SECONDS))
    return NetworkSpeed(channels=channels, plain=plain, ddm=ddm)


def _training(
    config: DemoConfig, channels: int, shape: Sequence[int], store: Path, output: Path
) -> TrainConfig:
    """The DDM's training, of a network of `channels`."""
    generator = fitting_generator(config, shape)
    network = widened(generator.network, channels)
    return replace(generator, network=network, store=str(store), output=str(output))


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """The result of some work that ends on the CPU, and its seconds."""
    started = time.monotonic()
    result = work()
    return result, time.monotonic() - started


@contextmanager
def quiet() -> Iterator[None]:
    """No messages of what is measured in the block; the real work warns itself."""
    log = logging.getLogger("latentddm")
    before = log.level
    log.setLevel(max(before, logging.ERROR))
    try:
        yield
    finally:
        log.setLevel(before)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """The threads of torch that a training has, in the block; 0: all."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
