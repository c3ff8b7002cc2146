"""The metrics by name: one function and one line in a registry each.

METRICS          distances of two sets of features
SAMPLE_METRICS   numbers of one set of images, without a reference
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latentddm.engine.errors import UserError
from latentddm.evaluation.attributes import AttributeExtractor, attribute_estimates
from latentddm.evaluation.distances import (
    energy_estimate,
    frechet_estimate,
    kid_estimate,
    median_distance,
    mmd2_estimate,
    sliced_wasserstein_estimate,
)
from latentddm.evaluation.image_pairs import DIVERSITY_PAIRS, SMALLEST_SIZE, open_lpips_diversity
from latentddm.evaluation.inception import InceptionExtractor
from latentddm.evaluation.manifold import NEIGHBOURS, prdc
from latentddm.evaluation.protocol import Estimate, Result

Estimator = Callable[[Tensor, Tensor, int], Estimate | dict[str, Estimate]]
"""(samples [N, D], reference [M, D], seed) -> the metric, or several values by name."""


@dataclass(frozen=True)
class Metric:
    """A distance of two sets of features.

    equation: the estimator in words, for the protocol. features: the name of the only feature
    space in which the metric is defined; None: every space.
    """

    estimate: Estimator
    equation: str
    features: str | None = None

    def estimates(
        self, name: str, samples: Tensor, reference: Tensor, seed: int
    ) -> dict[str, Estimate]:
        """The values by name; a single one has the name of the metric."""
        found = self.estimate(samples, reference, seed)
        return {name: found} if isinstance(found, Estimate) else found


@dataclass(frozen=True)
class SampleMetric:
    """A number of one set of images, without a reference.

    open: device -> (pixels uint8 [N, S, S, 3], seed) -> result; weights are loaded when it is
    opened. images: the number of images that it uses at most; smallest: pixels a side of them.
    """

    open: Callable[[torch.device | str], Callable[[Tensor, int], Result]]
    images: int
    smallest: int = 1


def _frechet(samples: Tensor, reference: Tensor, seed: int) -> Estimate:
    return frechet_estimate(samples, reference)


def _kernel(samples: Tensor, reference: Tensor, seed: int) -> Estimate:
    return kid_estimate(samples, reference, seed=seed)


def _energy(samples: Tensor, reference: Tensor, seed: int) -> Estimate:
    return energy_estimate(samples, reference)


def _mmd(samples: Tensor, reference: Tensor, seed: int) -> Estimate:
    return mmd2_estimate(samples, reference, bandwidth=median_distance(reference))


def _sliced(samples: Tensor, reference: Tensor, seed: int) -> Estimate:
    return sliced_wasserstein_estimate(samples, reference, seed=seed)


def _prdc(samples: Tensor, reference: Tensor, seed: int) -> dict[str, Estimate]:
    return dict(vars(prdc(samples, reference)))


def _attributes(samples: Tensor, reference: Tensor, seed: int) -> dict[str, Estimate]:
    return attribute_estimates(samples, reference)


_FRECHET = "Fréchet distance of Gaussians, unbiased covariances"
_KERNEL = "MMD^2, kernel (x.y / D + 1)^3, unbiased, mean over 100 subsets of up to 1000"
_MMD = "MMD^2, RBF kernel, unbiased, bandwidth: median distance in the reference's first 1000"
_PRDC = f"precision, recall, density, coverage, k = {NEIGHBOURS}"

METRICS: dict[str, Metric] = {
    "frechet": Metric(_frechet, _FRECHET),
    "fid": Metric(_frechet, _FRECHET, features=InceptionExtractor.name),
    "kernel": Metric(_kernel, _KERNEL),
    "kid": Metric(_kernel, _KERNEL, features=InceptionExtractor.name),
    "energy": Metric(_energy, "energy distance, unbiased"),
    "mmd": Metric(_mmd, _MMD),
    "sliced": Metric(_sliced, "sliced Wasserstein-2 distance, 256 directions"),
    "prdc": Metric(_prdc, _PRDC),
    "attributes": Metric(
        _attributes, "total variation of attribute histograms", features=AttributeExtractor.name
    ),
}
"""fid and kid are the names of frechet and kernel in Inception features, and of nothing else."""

SAMPLE_METRICS: dict[str, SampleMetric] = {
    "lpips": SampleMetric(open_lpips_diversity, images=2 * DIVERSITY_PAIRS, smallest=SMALLEST_SIZE),
}


def find_metric(name: str) -> Metric:
    """The distance of a name; UserError listing the names if there is none."""
    if name not in METRICS:
        raise UserError(f"There is no metric {name!r}; choose from {', '.join(METRICS)}.")
    return METRICS[name]


def split_metrics(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """The names of METRICS and those of SAMPLE_METRICS; UserError for one in neither."""
    for name in names:
        if name not in METRICS and name not in SAMPLE_METRICS:
            known = ", ".join([*METRICS, *SAMPLE_METRICS])
            raise UserError(f"There is no metric {name!r}; choose from {known}.")
    distances = [name for name in names if name in METRICS]
    return distances, [name for name in names if name not in METRICS]


def require_features(name: str, features: str) -> None:
    """UserError for a metric in features in which its name would mislead."""
    metric = find_metric(name)
    if metric.features not in (None, features):
        same = (other for other, m in METRICS.items() if m == Metric(metric.estimate, m.equation))
        instead = next((f"; use {other} there" for other in same), "")
        raise UserError(
            f"{name} is defined in the features {metric.features}, not in {features}{instead}."
        )
