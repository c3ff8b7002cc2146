"""The rates of this machine for tools/experiment.py, from a few dozen of the images."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from experiment_plan import FEWEST_FOR_FID, Rates, Work, training_images

from autoencoder.images import ImageSource, Preprocessing
from autoencoder.models import Autoencoder, load_autoencoder
from autoencoder.models.adapters import wrap_network
from autoencoder.training import AutoencoderConfig, measure_training
from autoencoder.training.network import build_network
from latentddm.demo.plan import WIDTHS, NetworkSpeed
from latentddm.demo.reading import Sample, read_sample
from latentddm.demo.sizing import widened
from latentddm.demo.speed import codec_speeds, network_speed, quiet, sample_store, timed
from latentddm.diffusion.sampling import sample, time_grid
from latentddm.engine.devices import default_device
from latentddm.engine.errors import JobError, UserError
from latentddm.evaluation.evaluate import evaluate_features
from latentddm.evaluation.extractors import DEFAULT_FEATURES, INCEPTION, open_extractor
from latentddm.evaluation.features import FeatureExtractor, FeatureSet, FeatureSpace
from latentddm.networks.network import make_network
from latentddm.training.config import TrainConfig

SECONDS = 3.0  # of measured steps of an autoencoder
WORKERS = 2
EVALUATIONS = 2  # of the network, for its speed
SAMPLES_AT_ONCE = 16
OF_SPACE = {INCEPTION: ("fid", "kid", "energy"), DEFAULT_FEATURES: ("frechet", "energy")}
"""Feature spaces, the preferred first, and the metrics of the comparison in each."""


def sample_of(source: ImageSource, size: int) -> Sample:
    """Some images; UserError if there are too few, or none can be read."""
    return read_sample(source, Preprocessing(size=size), WORKERS)


def autoencoder_of(reference: str | None, training: AutoencoderConfig) -> Autoencoder:
    """The autoencoder of a reference, or the one to be trained, with its first weights."""
    device = default_device()
    if reference is not None:
        return load_autoencoder(reference, device=device)
    network = build_network(training)
    return wrap_network(network, reference="untrained", fingerprint="untrained").to(device)


@quiet()
def measure_rates(
    work: Work,
    source: ImageSource,
    sampled: Sample,
    autoencoder: Autoencoder,
    training: AutoencoderConfig | None,
    generator: TrainConfig,
) -> Rates:
    """All rates; the networks from the narrowest on to the widest of use in the time.

    training: of the autoencoder, None if it is given; generator: its phases, of any length.
    """
    size = sampled.pixels.shape[1]
    encode, decode = codec_speeds(autoencoder, sampled.pixels)
    per_image = 0.0
    if training is not None:
        per_image = 1 / measure_training(training, source, SECONDS).images_per_second
    spaces = _open_spaces(size)
    described = {name: _describing(one, sampled.pixels) for name, one in spaces.items()}
    rates = Rates(
        start=start_of_a_command(),
        read=sampled.seconds,
        encode=encode,
        decode=decode,
        autoencoder=per_image,
        evaluation=0.0,
        describe=described,
        distance={name: distance_seconds(one, OF_SPACE[name]) for name, one in spaces.items()},
    )
    with TemporaryDirectory(prefix="latentddm-") as folder:
        store = sample_store(Path(folder), sampled.pixels, autoencoder, size)
        measured = replace(generator, store=str(store), output=str(Path(folder) / "run"))
        networks: list[NetworkSpeed] = []
        for channels, fewest in WIDTHS:
            if networks and training_images(work, rates, {}) < fewest:
                break
            config = replace(measured, network=widened(generator.network, channels))
            networks.append(network_speed(config, channels))
            edge = size // autoencoder.factor
            shape = (autoencoder.latent_channels, edge, edge)
            evaluation = rates.evaluation or evaluation_seconds(config, shape)
            rates = replace(rates, evaluation=evaluation, networks=tuple(networks))
    return rates


def start_of_a_command() -> float:
    """Seconds until a command has imported what it needs."""
    code = "import latentddm.training.generator, autoencoder.models"
    _, seconds = timed(lambda: subprocess.run([sys.executable, "-c", code], check=True))
    return seconds


def _open_spaces(size: int) -> dict[str, FeatureExtractor]:
    """The feature spaces that can be had here, FID's Inception first; why not, on stdout."""
    spaces = {}
    for name in OF_SPACE:
        try:
            spaces[name] = open_extractor(name, size, default_device())
        except (UserError, JobError) as error:
            print(f"No FID: {error}", flush=True)
    return spaces


def _describing(extractor: FeatureExtractor, pixels: torch.Tensor) -> float:
    extractor(pixels[:1])  # the first call prepares kernels
    return timed(lambda: extractor(pixels))[1] / len(pixels)


def distance_seconds(extractor: FeatureExtractor, metrics: Sequence[str]) -> float:
    """Seconds for the distances of a set, which the dimension decides, hardly its size."""
    space = FeatureSpace(extractor.name, extractor.hash, extractor.resize)
    samples, reference = (
        FeatureSet(
            torch.randn(FEWEST_FOR_FID, extractor.dimension),
            tuple(range(FEWEST_FOR_FID)),
            tuple(bytes([part]) + index.to_bytes(4, "big") for index in range(FEWEST_FOR_FID)),
            size=64,
            name="noise",
            space=space,
        )
        for part in range(2)
    )
    device = default_device()
    return timed(lambda: evaluate_features(samples, reference, metrics, device=device))[1]


def evaluation_seconds(config: TrainConfig, shape: tuple[int, int, int]) -> float:
    """Seconds of a network evaluation for an image, in float32 as samples are drawn."""
    network = make_network(config.network, shape, config.schedule)
    network.eval().requires_grad_(False).to(default_device())
    noise = torch.randn(SAMPLES_AT_ONCE, *shape, device=default_device())

    def draw() -> None:
        sample(network, noise, time_grid(EVALUATIONS)).cpu()

    draw()
    return timed(draw)[1] / (EVALUATIONS * SAMPLES_AT_ONCE)
