"""The sizes of a demo for a number of minutes, from speeds that were measured on this machine.

The time is a sum over the stages: reading and encoding, the autoencoder's training, the training of
both generators, their samples. Shares of it are given to all but the training of the generators,
which gets the rest, and the widest network that this time can train.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from latentddm.demo.config import Sizes
from latentddm.demo.reading import FEWEST_IMAGES
from latentddm.demo.reference import REFERENCE_IMAGES

REPORT_SECONDS = 5.0
READING_SHARE, AUTOENCODER_SHARE, SAMPLING_SHARE = 0.2, 0.2, 0.2
MOST_SAMPLES = 1000
FEWEST_BATCHES = 20  # of each phase
PLAIN_SHARE = 0.75  # of the images that a DDM sees: its phase of plain diffusion
WIDTHS: tuple[tuple[int, int], ...] = ((64, 0), (128, 24_000), (192, 400_000), (256, 2_000_000))
"""Channels of the networks, and the fewest images that such a network has to see to be worth it."""


@dataclass(frozen=True, kw_only=True)
class NetworkSpeed:
    """Seconds of training for each image of a network of `channels`, on its share of the cores."""

    channels: int
    plain: float
    ddm: float

    @property
    def mixed(self) -> float:
        """Of the two phases of the DDM."""
        return PLAIN_SHARE * self.plain + (1 - PLAIN_SHARE) * self.ddm


@dataclass(frozen=True, kw_only=True)
class Speeds:
    """Seconds for each image, on all cores but for the networks; together: trainings at once."""

    read: float
    encode: float
    decode: float
    autoencoder: float  # of its training here; 0: pretrained
    together: int
    startup: float = 0.0  # seconds until the trainings' own processes are ready
    spent: float = 0.0  # seconds before the work: start, measurement of all this
    networks: tuple[NetworkSpeed, ...] = ()  # narrowest first


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The parts of a plan that do not depend on the generators' network."""

    pictures: int
    samples: int
    autoencoder_images: int
    fixed: float  # seconds of all but the training and what is measured beside it
    beside: float  # seconds of one core's share: measured while the trainings run

    @property
    def reference(self) -> int:
        return min(2 * self.samples, REFERENCE_IMAGES, self.pictures // 2)


def make_budget(minutes: float, available: int, settings: int, speeds: Speeds) -> Budget:
    """The sizes of all stages but the training of the generators.

    available: images of the source; settings: numbers of evaluations that samples are drawn at.
    """
    before = speeds.spent + speeds.startup + REPORT_SECONDS
    total = max(60 * minutes - before, 0.0)
    trained = 0
    if speeds.autoencoder:
        trained = max(int(AUTOENCODER_SHARE * total / speeds.autoencoder), 8)
    wanted = int(READING_SHARE * total / (speeds.read + speeds.encode))
    pictures = min(available, max(wanted, 4 * FEWEST_IMAGES))
    compared = speeds.encode + speeds.decode
    one = 3 * compared + 2 * settings * speeds.decode  # two of the reference, one of the floor
    samples = min(int(SAMPLING_SHARE * total / one), MOST_SAMPLES, pictures // 3)
    samples = max(samples, FEWEST_IMAGES // 2)
    drawn = samples * settings * speeds.decode
    fixed = pictures * (speeds.read + speeds.encode) + trained * speeds.autoencoder + drawn
    return Budget(
        pictures=pictures,
        samples=samples,
        autoencoder_images=trained,
        fixed=before + fixed,
        beside=max(speeds.together, 1) * (3 * samples * compared + drawn),
    )


def training_images(minutes: float, budget: Budget, network: NetworkSpeed, together: int) -> int:
    """Images that both generators can see in the rest of the time, at least 0.

    One after the other their times add up. Together the DDM's alone bounds the time, or half of
    both and of the measurements beside them, which run on the same cores.
    """
    left = 60 * minutes - budget.fixed
    both = network.mixed + network.plain
    if together < 2:
        return max(int((left - budget.beside) / both), 0)
    return max(int(min(left / network.mixed, (2 * left - budget.beside) / both)), 0)


def training_seconds(images: int, budget: Budget, network: NetworkSpeed, together: int) -> float:
    """The inverse of `training_images`: seconds of the trainings and what is beside them."""
    both = images * (network.mixed + network.plain) + budget.beside
    return both if together < 2 else max(images * network.mixed, both / 2)


def choose_network(minutes: float, budget: Budget, speeds: Speeds) -> tuple[NetworkSpeed, int]:
    """The widest measured network that sees enough images, and their number."""
    return widest(
        [
            (network, training_images(minutes, budget, network, speeds.together))
            for network in speeds.networks
        ]
    )


def widest(found: Sequence[tuple[NetworkSpeed, int]]) -> tuple[NetworkSpeed, int]:
    """Of networks and the images that each can see: the widest that sees enough (WIDTHS)."""
    fewest = dict(WIDTHS)
    fit = [(network, images) for network, images in found if images >= fewest[network.channels]]
    return fit[-1] if fit else found[0]


def make_sizes(
    minutes: float, available: int, settings: int, batch_size: int, speeds: Speeds
) -> Sizes:
    """All sizes of a demo of `minutes`; a pure function. Arguments: see `make_budget`."""
    budget = make_budget(minutes, available, settings, speeds)
    network, images = choose_network(minutes, budget, speeds)
    phases = [
        max(int(share * images) // batch_size, FEWEST_BATCHES) * batch_size
        for share in (PLAIN_SHARE, 1 - PLAIN_SHARE)
    ]
    training = training_seconds(sum(phases), budget, network, speeds.together)
    return Sizes(
        pictures=budget.pictures,
        reference=budget.reference,
        samples=budget.samples,
        channels=network.channels,
        autoencoder_images=budget.autoencoder_images,
        plain_images=phases[0],
        ddm_images=phases[1],
        seconds=round(budget.fixed + training),
    )
