"""Images of the training data in one feature space, and distances from them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from latentddm.evaluation.evaluate import evaluate_features
from latentddm.evaluation.features import FeatureExtractor, FeatureSet, extract_features
from latentddm.evaluation.protocol import Result

METRICS = ("frechet", "energy")
REFERENCE_IMAGES = 2000
RECONSTRUCTIONS, ORIGINALS, LATENTS = "", "original_", "latent_"
COMPARED_WITH = {
    RECONSTRUCTIONS: "reconstructions of training images",
    ORIGINALS: "training images",
    LATENTS: "training images' latents",
}
"""The images of each reference of the report, by the prefix of its metrics."""
MOST_LATENT_FEATURES = 512  # a Fréchet distance in D dimensions takes time of D cubed


@dataclass(frozen=True)
class Reference:
    """The training images in one feature space; `prefix` begins the names of its metrics."""

    prefix: str
    extractor: FeatureExtractor
    features: FeatureSet

    @classmethod
    def of(cls, prefix: str, extractor: FeatureExtractor, images: Tensor | np.ndarray) -> Reference:
        return cls(prefix, extractor, extract_features(images, extractor, name="demo"))

    def distances(self, images: Tensor | np.ndarray) -> dict[str, Result]:
        """The METRICS of images, or latents, by their names with the prefix."""
        return self.distances_of(extract_features(images, self.extractor, name="demo"))

    def distances_of(self, features: FeatureSet) -> dict[str, Result]:
        """`distances` of images whose features in the same space are there already."""
        found = evaluate_features(features, self.features, METRICS)
        return {self.prefix + name: found[name] for name in METRICS}


def latent_pool(shape: tuple[int, int, int]) -> int:
    """Edge of the smallest cells whose means of latents [C, H, W] are few enough, or H.

    1 for latents of up to MOST_LATENT_FEATURES numbers.
    """
    channels, height, width = shape
    pools = [edge for edge in range(1, height) if height % edge == 0 == width % edge]
    features = {edge: channels * (height // edge) * (width // edge) for edge in pools}
    fit = [edge for edge, count in features.items() if count <= MOST_LATENT_FEATURES]
    return min(fit, default=height)


def interval(result: Result) -> dict[str, float]:
    """A result for report.json."""
    return {"value": result.value, "low": result.low, "high": result.high}


def describe(result: Result, prefix: str, pool: int) -> str:
    """The protocol of a result in one line; pool: edge of the cells of latents."""
    about = result.protocol
    where = f"{about.features} of {about.size} px, {about.resize}"
    if prefix == LATENTS:
        where = "the latents" + (f", means of {pool} x {pool} cells" if pool > 1 else "")
    return (
        f"{about.estimator}; features: {where}; n = {about.n:,} against {about.n_reference:,} "
        f"{COMPARED_WITH[prefix]}; interval: {about.interval}"
    )
