"""Numbers for images: distances between sets of pictures, each with its protocol.

    results = evaluate_images(samples, reference)          # uint8 [N, S, S, 3] each
    print(results["frechet"], results["frechet"] / other["frechet"])

Distances of plain feature matrices are in distances.py, sliced.py and manifold.py; comparing two
sources of images (the command `latentddm evaluate`) is in folders.py.
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
