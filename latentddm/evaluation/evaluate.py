"""Two sets of images in, named results out, each with its interval and its protocol."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from latentddm.engine.errors import UserError
from latentddm.evaluation.estimate import Estimate, bootstrap_interval, interval_description
from latentddm.evaluation.features import (
    BATCH_SIZE,
    FeatureExtractor,
    FeatureSet,
    extract_features,
)
from latentddm.evaluation.metrics import find_metric, require_features
from latentddm.evaluation.protocol import SMALL_SAMPLE, Protocol, Result, warn_of_small_samples
from latentddm.evaluation.pyramid import PyramidExtractor


def evaluate_images(
    images: Tensor | np.ndarray,
    reference: Tensor | np.ndarray | FeatureSet,
    metrics: Sequence[str] = ("frechet", "energy"),
    extractor: FeatureExtractor | None = None,
    *,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
) -> dict[str, Result]:
    """The metrics of images against a reference, both uint8 [N, S, S, 3], by name.

    extractor: pyramid-v1 if none is given. A reference that is used often may be given as its
    features (extract_features). UserError for a metric that does not exist or does not fit the
    features, for different sizes, for too few images.
    """
    extractor = extractor or PyramidExtractor()
    for name in metrics:
        require_features(name, extractor.name)
    if not isinstance(reference, FeatureSet):
        reference = extract_features(reference, extractor, name="reference", batch_size=batch_size)
    samples = extract_features(images, extractor, name="images", batch_size=batch_size)
    return evaluate_features(samples, reference, metrics, seed=seed)


def evaluate_features(
    samples: FeatureSet,
    reference: FeatureSet,
    metrics: Sequence[str],
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> dict[str, Result]:
    """The metrics of one set of features against another; prdc gives four results.

    device: where the distances are computed, in float64; the CPU in the place of one without it.
    """
    _check_sets(samples, reference)
    where = torch.device(device)
    where = torch.device("cpu") if where.type == "mps" else where
    values, reference_values = samples.values.to(where), reference.values.to(where)
    results = {}
    for name in metrics:
        metric = find_metric(name)
        require_features(name, samples.space.name)
        for part, estimate in metric.estimate(values, reference_values, seed).items():
            results[part] = _result(part, metric.equation, estimate, samples, reference, seed)
    return results


def _check_sets(samples: FeatureSet, reference: FeatureSet) -> None:
    if samples.space != reference.space:
        raise UserError(
            f"The images have the features {samples.space.name} ({samples.space.hash}) and the "
            f"reference {reference.space.name} ({reference.space.hash}); use one extractor."
        )
    if samples.size != reference.size:
        raise UserError(
            f"The images have {samples.size} pixels a side and the reference {reference.size}; "
            "bring both to one size, or the difference of sizes is what is measured."
        )
    fewest = min(len(samples), len(reference))
    if fewest < 2:
        raise UserError(f"A distance needs two images on each side; one side has {fewest}.")
    if fewest < SMALL_SAMPLE:
        warn_of_small_samples()


def _result(
    name: str,
    equation: str,
    estimate: Estimate,
    samples: FeatureSet,
    reference: FeatureSet,
    seed: int,
) -> Result:
    protocol = Protocol(
        metric=name,
        estimator=equation,
        n=len(samples),
        n_reference=len(reference),
        size=samples.size,
        features=samples.space.name,
        features_hash=samples.space.hash,
        resize=samples.space.resize,
        reference_hash=reference.images_hash,
        seed=seed,
        interval=interval_description(estimate),
        reference=reference.name,
    )
    return Result(estimate.value, *bootstrap_interval(estimate, seed), protocol)
