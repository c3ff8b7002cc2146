"""The sizes of tools/experiment.py for a number of hours, from rates measured on this machine.

The hours are a sum over the stages. Shares of them are given to the autoencoder, the encoding and
the comparison; the trainings get the rest, and the widest network that this time can train. Sizes
of a stage that has begun are kept; those of the later ones follow the time that is left then, but
the width of the network, which is that of the first plan.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from latentddm.demo.plan import FEWEST_BATCHES, PLAIN_SHARE, NetworkSpeed, widest
from latentddm.engine.config import to_plain
from latentddm.engine.errors import UserError

MEASURE, AUTOENCODER, LATENTS, DDM, PLAIN, COMPARISON = STAGES = (
    "measurement",
    "autoencoder",
    "latents",
    "DDM",
    "plain diffusion",
    "comparison",
)
AUTOENCODER_SHARE, ENCODING_SHARE, COMPARISON_SHARE = 0.25, 0.2, 0.2
FEWEST_IMAGES, FEWEST_SAMPLES, MOST_SAMPLES = 64, 64, 5000
FEWEST_FOR_FID = 1000  # samples, below which the Inception's distance is mostly bias
TOLERANCE = 0.05  # of the hours: least sizes are rounded up
VIEWS = 2  # of each image in the store: mirrored too


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Seconds of this machine for each image; start: of a command, before its work begins."""

    start: float
    read: float
    encode: float
    decode: float
    autoencoder: float  # in its training; 0: it is given
    evaluation: float  # of the narrowest network
    describe: dict[str, float]  # the features of an image, by feature space
    distance: dict[str, float]  # the distances of a set of images, by feature space
    networks: tuple[NetworkSpeed, ...] = ()  # in training, narrowest first


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is asked for: seconds in all, images there are, batch size, cells of the comparison."""

    seconds: float
    available: int
    batch: int
    tried: tuple[int, ...]  # evaluations of each setting that is tried, one entry a setting
    reported: tuple[int, ...]  # and of each row of the table, drawn afresh at its best setting
    rival: bool = True  # plain diffusion, on as many images


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The sizes of all stages, and the seconds that each is planned to take."""

    channels: int = 0
    autoencoder_images: int = 0
    images: int = 0  # that are encoded
    plain_images: int = 0  # seen by the DDM in its phase of plain diffusion
    ddm_images: int = 0
    samples: int = 0
    features: str = ""
    seconds: dict[str, float]

    @property
    def seen(self) -> int:
        """The images that each generator sees in training."""
        return self.plain_images + self.ddm_images

    @property
    def trial_samples(self) -> int:
        """Of each setting that is tried: enough to choose by; the table is of `samples` others."""
        return -(-self.samples // 2)

    def describe(self) -> str:
        """One line a stage: its work and its time."""
        trained = f"{self.autoencoder_images:,} images seen"
        both = f"{self.plain_images:,} images seen as plain diffusion, {self.ddm_images:,} as a DDM"
        texts = {
            AUTOENCODER: trained,
            LATENTS: f"{self.images:,} images and their mirror images",
            DDM: f"{both}; a network of {self.channels} channels",
            PLAIN: f"{self.seen:,} images seen",
            COMPARISON: f"{self.samples:,} samples a row, {self.trial_samples:,} of each setting "
            f"that is tried; features {self.features}",
        }
        lines = [
            f"  {name:16} {seconds / 60:7.1f} min  {texts.get(name, '')}".rstrip()
            for name, seconds in self.seconds.items()
        ]
        return "\n".join([*lines, f"  {'in all':16} {sum(self.seconds.values()) / 60:7.1f} min"])

    def to_plain(self) -> dict[str, Any]:
        """Plain JSON values."""
        return to_plain(self)


def make_plan(work: Work, rates: Rates, taken: Mapping[str, float], before: Plan | None) -> Plan:
    """The plan of the stages that have not begun, in the time that is left; a pure function.

    taken: seconds of the stages that have begun, whose sizes are those of the plan `before`.
    UserError if the hours are too few for the least work.
    """
    left = work.seconds - sum(taken.values())
    plan = before or Plan(seconds={})
    open_stages = [name for name in stages_of(work, rates) if name not in taken]
    if AUTOENCODER in open_stages:
        images = max(int(AUTOENCODER_SHARE * left / rates.autoencoder), FEWEST_IMAGES)
        plan = replace(plan, autoencoder_images=images)
    if LATENTS in open_stages:
        wanted = int(ENCODING_SHARE * left / (rates.read + VIEWS * rates.encode))
        plan = replace(plan, images=min(work.available, max(wanted, FEWEST_IMAGES)))
    share = left if open_stages == [COMPARISON] else COMPARISON_SHARE * left
    if COMPARISON in open_stages:
        plan = _sized_comparison(work, rates, plan, share)
    if DDM in open_stages:
        for _ in range(2):  # again, since samples of the network that was chosen take longer
            plan = _sized_training(work, rates, plan, left, open_stages)
            plan = _sized_comparison(work, rates, plan, share)
        plan = _sized_training(work, rates, plan, left, open_stages)
    seconds = {**taken, **{name: _cost(name, work, rates, plan) for name in open_stages}}
    if before is None and sum(seconds.values()) > (1 + TOLERANCE) * work.seconds:
        raise UserError(
            f"--hours is {work.seconds / 3600:.3g}, but the least work of all stages takes "
            f"{sum(seconds.values()) / 3600:.2g} here; give more hours, or a smaller --size."
        )
    return replace(plan, seconds=seconds)


def stages_of(work: Work, rates: Rates) -> Sequence[str]:
    """The stages after the measurement, in their order."""
    absent = {AUTOENCODER} if not rates.autoencoder else set()
    absent |= set() if work.rival else {PLAIN}
    return [name for name in STAGES[1:] if name not in absent]


def minutes_of_fid(work: Work, rates: Rates, plan: Plan, space: str) -> float | None:
    """Minutes of a comparison in FID's feature space; None if that space cannot be had."""
    if space not in rates.describe:
        return None
    least = replace(plan, features=space, samples=FEWEST_FOR_FID)
    return _cost(COMPARISON, work, rates, least) / 60


def _sized_comparison(work: Work, rates: Rates, plan: Plan, seconds: float) -> Plan:
    """As many samples as the seconds allow, in the first of the spaces in which they are enough."""
    for space in rates.describe:
        plan = replace(plan, features=space, samples=0)
        fixed = _cost(COMPARISON, work, rates, plan)
        two = _cost(COMPARISON, work, rates, replace(plan, samples=2)) - fixed
        samples = min(int(max(seconds - fixed, 0) / two) * 2, MOST_SAMPLES)
        plan = replace(plan, samples=max(samples, FEWEST_SAMPLES))
        if min(plan.samples, work.available) >= FEWEST_FOR_FID:
            break
    return plan


def _sized_training(
    work: Work, rates: Rates, plan: Plan, left: float, open_stages: Sequence[str]
) -> Plan:
    """The widest network that sees enough images in the time that the other stages leave."""
    others = [name for name in open_stages if name not in (DDM, PLAIN)]
    trainings = [name for name in open_stages if name in (DDM, PLAIN)]
    rest = left - sum(_cost(name, work, rates, plan) for name in others)
    rest -= rates.start * len(trainings)
    networks = [net for net in rates.networks if plan.channels in (0, net.channels)]
    found = [(net, max(int(rest / seconds_per_image(work, net)), 0)) for net in networks]
    network, images = widest(found)
    first, second = (
        max(int(share * images) // work.batch, FEWEST_BATCHES) * work.batch
        for share in (PLAIN_SHARE, 1 - PLAIN_SHARE)
    )
    return replace(plan, channels=network.channels, plain_images=first, ddm_images=second)


def seconds_per_image(work: Work, network: NetworkSpeed) -> float:
    """Of training for an image that the DDM, and plain diffusion beside it, sees."""
    return network.mixed + (network.plain if work.rival else 0)


def training_images(work: Work, rates: Rates, taken: Mapping[str, float]) -> int:
    """Images that the last measured network could see: whether a wider one is worth measuring."""
    return make_plan(replace(work, seconds=max(work.seconds, 1)), rates, taken, _EMPTY).seen


def _cost(stage: str, work: Work, rates: Rates, plan: Plan) -> float:
    """Seconds of a stage of these sizes."""
    network = next((net for net in rates.networks if net.channels == plan.channels), None)
    if stage == AUTOENCODER:
        return rates.start + plan.autoencoder_images * rates.autoencoder
    if stage == LATENTS:
        return rates.start + plan.images * (rates.read + VIEWS * rates.encode)
    if stage == DDM:
        phases = (network.plain, network.ddm) if network else (0.0, 0.0)
        return rates.start + plan.plain_images * phases[0] + plan.ddm_images * phases[1]
    if stage == PLAIN:
        return rates.start + plan.seen * (network.plain if network else 0.0)
    described = rates.decode + rates.describe[plan.features]
    wider = network.plain / rates.networks[0].plain if network else 1.0
    cells = ((work.tried, plan.trial_samples), (work.reported, plan.samples))
    drawn = sum(
        samples * (len(each) * described + sum(each) * rates.evaluation * wider)
        for each, samples in cells
    )
    reference = plan.samples * (rates.read + rates.encode + described)
    distances = (len(work.tried) + len(work.reported)) * rates.distance[plan.features]
    return rates.start + drawn + reference + distances


_EMPTY = Plan(seconds={})
