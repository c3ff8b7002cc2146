"""The metrics by name: their equation, what they need, and how they are estimated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from latentddm.engine.errors import UserError
from latentddm.evaluation.distances import (
    energy_estimate,
    frechet_estimate,
    kid_estimate,
    median_distance,
    mmd2_estimate,
)
from latentddm.evaluation.estimate import Estimate
from latentddm.evaluation.inception import InceptionExtractor
from latentddm.evaluation.manifold import NEIGHBOURS, prdc
from latentddm.evaluation.sliced import sliced_wasserstein_estimate

ATTRIBUTE_FEATURES = "portrait-attributes-v1"

Estimator = Callable[[Tensor, Tensor, int], dict[str, Estimate]]
"""(samples [N, D], reference [M, D], seed) -> values by name."""


@dataclass(frozen=True)
class Metric:
    """equation: for the protocol. features: the only feature space it is defined in, if any."""

    equation: str
    estimate: Estimator
    features: str | None = None


def _prdc(samples: Tensor, reference: Tensor, seed: int) -> dict[str, Estimate]:
    return dict(vars(prdc(samples, reference)))


def _attributes(samples: Tensor, reference: Tensor, seed: int) -> dict[str, Estimate]:
    from latentddm.evaluation.attributes import attribute_estimates

    return attribute_estimates(samples, reference)


_FRECHET = "Fréchet distance of Gaussians, unbiased covariances"
_KERNEL = "MMD^2, kernel (x.y / D + 1)^3, unbiased, mean over 100 subsets of up to 1000"
_MMD = "MMD^2, RBF kernel, unbiased, bandwidth: median distance in the reference's first 1000"

METRICS: dict[str, Metric] = {
    "frechet": Metric(_FRECHET, lambda a, b, _: {"frechet": frechet_estimate(a, b)}),
    "fid": Metric(
        _FRECHET, lambda a, b, _: {"fid": frechet_estimate(a, b)}, InceptionExtractor.name
    ),
    "kernel": Metric(_KERNEL, lambda a, b, seed: {"kernel": kid_estimate(a, b, seed=seed)}),
    "kid": Metric(
        _KERNEL, lambda a, b, seed: {"kid": kid_estimate(a, b, seed=seed)}, InceptionExtractor.name
    ),
    "energy": Metric(
        "energy distance, unbiased", lambda a, b, _: {"energy": energy_estimate(a, b)}
    ),
    "mmd": Metric(_MMD, lambda a, b, _: {"mmd": mmd2_estimate(a, b, bandwidth=median_distance(b))}),
    "sliced": Metric(
        "sliced Wasserstein-2 distance, 256 directions",
        lambda a, b, seed: {"sliced": sliced_wasserstein_estimate(a, b, seed=seed)},
    ),
    "prdc": Metric(f"precision, recall, density, coverage, k = {NEIGHBOURS}", _prdc),
    "attributes": Metric(
        "total variation of attribute histograms", _attributes, ATTRIBUTE_FEATURES
    ),
}
"""fid and kid are the names of two of these in Inception features, and of nothing else."""


def find_metric(name: str) -> Metric:
    """The metric of a name; UserError listing the names if there is none."""
    if name not in METRICS:
        raise UserError(f"There is no metric {name!r}; choose from {', '.join(METRICS)} and lpips.")
    return METRICS[name]


def require_features(name: str, features: str) -> None:
    """UserError if a metric is asked for in features in which its name would mislead."""
    wanted = find_metric(name).features
    if wanted not in (None, features):
        other = {"fid": "; use frechet there", "kid": "; use kernel there"}.get(name, "")
        raise UserError(f"{name} is defined in the features {wanted}, not in {features}{other}.")
