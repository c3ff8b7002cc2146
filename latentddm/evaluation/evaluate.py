"""Two sets of images, or of their features, to named results with intervals and protocols."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from latentddm.engine.errors import UserError
from latentddm.evaluation.extractors import default_extractor
from latentddm.evaluation.features import (
    BATCH_SIZE,
    FeatureExtractor,
    FeatureSet,
    extract_features,
)
from latentddm.evaluation.metrics import (
    SAMPLE_METRICS,
    find_metric,
    require_features,
    split_metrics,
)
from latentddm.evaluation.protocol import (
    SMALL_SAMPLE,
    Estimate,
    Protocol,
    Result,
    warn_of_small_samples,
)


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

    extractor: of DEFAULT_FEATURES if none is given. A reference that is used often may be given as
    its features (extract_features). UserError for an unknown metric or one that does not fit the
    features, for different sizes, for too few images.
    """
    extractor = extractor or default_extractor()
    distances, of_samples = split_metrics(metrics)
    for name in distances:
        require_features(name, extractor.name)
    opened = {name: SAMPLE_METRICS[name].open("cpu") for name in of_samples}
    results: dict[str, Result] = {}
    if distances:
        if not isinstance(reference, FeatureSet):
            reference = extract_features(
                reference, extractor, name="reference", batch_size=batch_size
            )
        samples = extract_features(images, extractor, name="images", batch_size=batch_size)
        results = evaluate_features(samples, reference, distances, seed=seed)
    for name, measure in opened.items():
        results[name] = measure(torch.as_tensor(images), seed)
    return results


def evaluate_features(
    samples: FeatureSet,
    reference: FeatureSet,
    metrics: Sequence[str],
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> dict[str, Result]:
    """The distances of one set of features from another; prdc gives four results.

    device: of the computation, in float64; the CPU in the place of a device without float64.
    """
    _check_sets(samples, reference)
    where = torch.device(device)
    where = torch.device("cpu") if where.type == "mps" else where
    values, reference_values = samples.values.to(where), reference.values.to(where)
    results = {}
    for name in metrics:
        metric = find_metric(name)
        require_features(name, samples.space.name)
        for part, estimate in metric.estimates(name, values, reference_values, seed).items():
            protocol = _protocol(part, metric.equation, estimate, samples, reference, seed)
            results[part] = Result.of(estimate, protocol)
    return results


def _check_sets(samples: FeatureSet, reference: FeatureSet) -> None:
    if samples.space != reference.space:
        raise UserError(
            f"The images have the features {samples.space.name} ({samples.space.hash}) and the "
            f"reference {reference.space.name} ({reference.space.hash}); use one extractor."
        )
    fewest = min(len(samples), len(reference))
    if fewest < 2:
        raise UserError(f"A distance needs two images on each side; one side has {fewest}.")
    if samples.size != reference.size:
        raise UserError(
            f"The images have {samples.size} pixels a side and the reference {reference.size}; "
            "bring both to one size, or the metrics measure the difference of sizes."
        )
    if fewest < SMALL_SAMPLE:
        warn_of_small_samples()


def _protocol(
    name: str,
    equation: str,
    estimate: Estimate,
    samples: FeatureSet,
    reference: FeatureSet,
    seed: int,
) -> Protocol:
    return Protocol(
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
        interval=estimate.interval,
        reference=reference.name,
    )
