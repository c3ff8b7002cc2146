"""The stage behind `latentddm evaluate`: one source of images against a reference source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from autoencoder.images import (
    Preprocessing,
    SampleKeys,
    open_source,
    read_pixels,
    select_at_random,
)
from latentddm.engine.errors import UserError
from latentddm.evaluation.evaluate import evaluate_features
from latentddm.evaluation.extractors import DEFAULT_FEATURES, feature_space, open_extractor
from latentddm.evaluation.features import BATCH_SIZE, FeatureSet
from latentddm.evaluation.inception import InceptionExtractor
from latentddm.evaluation.metrics import (
    METRICS,
    SAMPLE_METRICS,
    require_features,
    split_metrics,
)
from latentddm.evaluation.protocol import Result
from latentddm.evaluation.sources import SizeChecked, common_size, extract_from_source

DEFAULT_METRICS = ("frechet", "energy")


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """Options of a comparison of two sources.

    metrics: names, or None for frechet, energy and, against portraits, attributes. features: an
    extractor's name for the metrics of every space, or None for inception if another metric needs
    it and DEFAULT_FEATURES otherwise. num: at most so many images of each side, drawn with the
    seed; None takes all. size: crop and resize both sides to it; None takes the size that all
    images have. sample_keys: "whole" for samples of tar shards whose names hold dots.
    """

    metrics: Sequence[str] | None = None
    features: str | None = None
    num: int | None = None
    size: int | None = None
    seed: int = 0
    sample_keys: SampleKeys = "webdataset"
    batch_size: int = BATCH_SIZE
    workers: int = 0
    device: str = "cpu"
    show_progress: bool = False

    def __post_init__(self) -> None:
        if self.num is not None and self.num < 2:
            raise UserError(f"num is {self.num}; a distance needs two images on each side.")


@dataclass(frozen=True)
class Evaluation:
    """Results by name, and the unreadable images of each side, which are left out."""

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
    group the processes share the work, and all return the same. UserError for a wrong request.
    """
    options = options or EvaluationOptions()
    metrics = options.metrics or _default_metrics(reference)
    distances, of_samples = split_metrics(metrics)
    spaces = _metrics_by_space(distances, options.features)
    sides = _open_sides(images, reference, options)
    size = sides["images"].size
    for name in of_samples:
        smallest = SAMPLE_METRICS[name].smallest
        if size < smallest:
            raise UserError(
                f"The metric {name} needs images of at least {smallest} pixels a side, and these "
                f"have {size}; leave it out."
            )
    extractors = {space: open_extractor(space, size, options.device) for space in spaces}
    for space, names in spaces.items():
        for name in names:
            require_features(name, extractors[space].name)
    opened = {name: SAMPLE_METRICS[name].open(options.device) for name in of_samples}
    sets: dict[str, dict[str, FeatureSet]] = {}
    unreadable: dict[str, list[str]] = {}
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
    for space, names in spaces.items():
        samples, others = sets["images"][space], sets["reference"][space]
        results |= evaluate_features(
            samples, others, names, seed=options.seed, device=options.device
        )
    for name, measure in opened.items():
        count = SAMPLE_METRICS[name].images
        chosen = select_at_random(sides["images"], count, options.seed)
        pixels, _ = read_pixels(chosen, Preprocessing(size=size), workers=options.workers)
        results[name] = measure(torch.from_numpy(pixels), options.seed)
    return Evaluation(results, unreadable)


def _open_sides(images: str, reference: str, options: EvaluationOptions) -> dict[str, SizeChecked]:
    """Both sources, at most `num` images of each, with the size of the comparison checked."""
    samples = open_source(images, options.size, sample_keys=options.sample_keys)
    size = options.size or common_size(samples)
    chosen, others = (
        select_at_random(source, options.num, options.seed)
        for source in (samples, open_source(reference, size, sample_keys=options.sample_keys))
    )
    return {
        "images": SizeChecked(chosen, size, exact=options.size is None),
        "reference": SizeChecked(others, size, exact=False),
    }


def _default_metrics(reference: str) -> list[str]:
    portraits = reference.partition(":")[0] == "portraits"
    return [*DEFAULT_METRICS, "attributes"] if portraits else [*DEFAULT_METRICS]


def _metrics_by_space(metrics: Sequence[str], features: str | None) -> dict[str, list[str]]:
    """The metrics to compute in each feature space, {space: metrics}.

    UserError if `features` are named and none of the metrics is defined there.
    """
    wanted = {METRICS[name].features for name in metrics}
    default = InceptionExtractor.name if InceptionExtractor.name in wanted else DEFAULT_FEATURES
    chosen = default if features is None else feature_space(features)
    spaces: dict[str, list[str]] = {}
    for name in metrics:
        spaces.setdefault(METRICS[name].features or chosen, []).append(name)
    if features is not None and metrics and chosen not in spaces:
        require_features(metrics[0], chosen)
    return spaces
