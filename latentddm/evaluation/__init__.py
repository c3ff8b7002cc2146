"""Distances between sets of images, each with its interval and its protocol.

    results = evaluate_images(samples, reference)          # uint8 [N, S, S, 3] each
    print(results["frechet"], results["frechet"] / other["frechet"])

README.md has the map of the modules, the sources of the metrics, and how to add one.
"""

from latentddm.evaluation.evaluate import evaluate_features, evaluate_images
from latentddm.evaluation.features import FeatureExtractor, FeatureSet, extract_features
from latentddm.evaluation.protocol import Protocol, Result
from latentddm.evaluation.pyramid import PyramidExtractor

__all__ = [
    "FeatureExtractor",
    "FeatureSet",
    "Protocol",
    "PyramidExtractor",
    "Result",
    "evaluate_features",
    "evaluate_images",
    "extract_features",
]
