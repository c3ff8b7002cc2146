"""The stage behind `latentddm evaluate`: a source of images against a reference source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from autoencoder.images import (
    Preprocessing,
    open_source,
    read_pixels,
    select_at_random,
)
from latentddm.engine.errors import UserError
from latentddm.evaluation.diversity import PAIRS, load_lpips, lpips_diversity
from latentddm.evaluation.evaluate import evaluate_features
from latentddm.evaluation.extraction import extract_from_source
from latentddm.evaluation.extractors import INCEPTION, PYRAMID, open_extractor
from latentddm.evaluation.features import BATCH_SIZE
from latentddm.evaluation.metrics import ATTRIBUTE_FEATURES, find_metric, require_features
from latentddm.evaluation.protocol import Result
from latentddm.evaluation.sizes import SizeChecked, common_size

DEFAULT_METRICS = ("frechet", "energy")
LPIPS = "lpips"


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """How two sources are compared.

    metrics: names, or None for frechet, energy and, against portraits, attributes. features: an
    extractor's name, or None for inception where fid or kid is asked for and pyramid-v1 elsewhere.
    num: at most so many images of each side, drawn with the seed; None takes all. size: crop and
    resize both sides to it; None takes the size that all images have.
    """

    metrics: Sequence[str] | None = None
    features: str | None = None
    num: int | None = None
    size: int | None = None
    seed: int = 0
    batch_size: int = BATCH_SIZE
    workers: int = 0
    device: str = "cpu"
    show_progress: bool = False

    def __post_init__(self) -> None:
        if self.num is not None and self.num < 2:
            raise UserError(f"num is {self.num}; a distance needs two images on each side.")


@dataclass(frozen=True)
class Evaluation:
    """Results by name, and the images that could not be read and were left out."""

    results: dict[str, Result]
    unreadable: dict[str, list[str]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """A JSON object with the protocols in it."""
        return asdict(self)


def evaluate_folders(
    images: str, reference: str, options: EvaluationOptions | None = None
) -> Evaluation:
    """Compare the images of one source with those of another (references of open_source).

    The images must all be squares of one size, unless a size is asked for. Larger reference images
    are cropped and resized to it as for encoding; smaller ones are refused. In a torch.distributed
    group the processes share the work, and all return the same. UserError says what is wrong.
    """
    options = options or EvaluationOptions()
    plan, with_lpips = _plan(options, reference)
    samples = open_source(images, options.size)
    size = options.size or common_size(samples)
    original = open_source(reference, size)
    sides = {
        "images": SizeChecked(
            select_at_random(samples, options.num, options.seed), size, exact=options.size is None
        ),
        "reference": SizeChecked(
            select_at_random(original, options.num, options.seed), size, exact=False
        ),
    }
    extractors = {space: open_extractor(space, size, options.device) for space in plan}
    for space, metrics in plan.items():
        for metric in metrics:
            require_features(metric, extractors[space].name)
    network = load_lpips(options.device) if with_lpips else None
    sets, unreadable = {}, {}
    for side, source in sides.items():
        sets[side], unreadable[side] = extract_from_source(
            source,
            Preprocessing(size=size),
            extractors,
            batch_size=options.batch_size,
            workers=options.workers,
            show_progress=options.show_progress,
        )
    results: dict[str, Result] = {}
    for space, metrics in plan.items():
        results |= evaluate_features(
            sets["images"][space],
            sets["reference"][space],
            metrics,
            seed=options.seed,
            device=options.device,
        )
    if network is not None:
        paired = select_at_random(sides["images"], 2 * PAIRS, options.seed)
        pixels, _ = read_pixels(paired, Preprocessing(size=size), workers=options.workers)
        results[LPIPS] = lpips_diversity(pixels, seed=options.seed, network=network)
    return Evaluation(results, unreadable)


def _plan(options: EvaluationOptions, reference: str) -> tuple[dict[str, list[str]], bool]:
    """The metrics to compute in each feature space, and whether LPIPS is asked for."""
    metrics = list(options.metrics or DEFAULT_METRICS)
    if options.metrics is None and reference.partition(":")[0] == "portraits":
        metrics.append("attributes")
    for name in metrics:
        if name != LPIPS:
            find_metric(name)
    features = options.features or (INCEPTION if {"fid", "kid"} & set(metrics) else PYRAMID)
    plan: dict[str, list[str]] = {}
    for name in metrics:
        if name != LPIPS:
            space = ATTRIBUTE_FEATURES if name == "attributes" else features
            plan.setdefault(space, []).append(name)
    return plan, LPIPS in metrics
