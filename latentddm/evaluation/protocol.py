"""Estimates, their intervals and their protocols; results of different protocols do not compare.

Resampling whole feature sets would recompute an eigen-decomposition or a matrix of distances a
thousand times, and a resample holds duplicates, which bias a Fréchet distance upwards. The
statistics here are smooth in the sample, so their first-order terms (influence values) are
resampled instead: cheap, and free of that bias (van der Vaart, Asymptotic Statistics, ch. 23).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from typing import Any

import numpy as np
from torch import Tensor

from latentddm.engine.errors import UserError
from latentddm.engine.seeding import numpy_generator

SMALL_SAMPLE = 10_000
RESAMPLES = 1000
LEVEL = 0.95
DRAWS_AT_ONCE = 1_000_000


@dataclass(frozen=True)
class Estimate:
    """A value and its derivatives by the weights of the units of the sample.

    influence: [n] float64 with mean about 0; when unit i has weight w_i in the place of 1 / n, the
    value changes by sum_i (w_i - 1 / n) influence_i to first order. unit: the resampled thing.
    """

    value: float
    influence: Tensor
    unit: str = "images"

    @property
    def interval(self) -> str:
        """Definition of the interval, for the protocol."""
        return f"{LEVEL:.0%} bootstrap over {self.unit}, {RESAMPLES} resamples, first order"


def estimate_from(value: float | Tensor, influence: Tensor, unit: str = "images") -> Estimate:
    """An estimate whose influence values [n] are centred here."""
    return Estimate(float(value), influence - influence.mean(), unit)


def mean_estimate(values: Tensor, unit: str = "images") -> Estimate:
    """The mean of values [n]; the influence of unit i is values_i less the mean."""
    values = values.double()
    return estimate_from(values.mean(), values, unit)


def bootstrap_interval(estimate: Estimate, seed: int = 0) -> tuple[float, float]:
    """The 95 % bootstrap interval (low, high) of an estimate, from 1,000 seeded resamples."""
    influence = estimate.influence.double().cpu().numpy()
    influence = influence - influence.mean()
    random = numpy_generator(seed, "bootstrap")
    count = len(influence)
    resamples_at_once = max(1, DRAWS_AT_ONCE // count)
    shifts = []
    for start in range(0, RESAMPLES, resamples_at_once):
        resamples = min(resamples_at_once, RESAMPLES - start)
        shifts.append(influence[random.integers(0, count, (resamples, count))].mean(axis=1))
    low, high = np.quantile(np.concatenate(shifts), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return estimate.value + float(low), estimate.value + float(high)


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Everything that a value depends on, apart from the images measured.

    metric: its name. estimator: the equation and its constants. n, n_reference: images on each
    side. size: edge of the images in pixels (0 for latents). features, features_hash, resize: the
    feature space and the preprocessing of its pixels. reference_hash: of the reference's pixels;
    `reference` is the source's name, for people, and takes no part in comparisons. seed: of every
    random choice. interval: definition of low and high.
    """

    metric: str
    estimator: str
    n: int
    n_reference: int
    size: int
    features: str
    features_hash: str
    resize: str
    reference_hash: str
    seed: int
    interval: str
    reference: str = field(compare=False)


@dataclass(frozen=True)
class Result:
    """A value with its interval and its protocol.

    Results of one protocol can be ordered, subtracted and divided; others raise a UserError that
    names the first difference.
    """

    value: float
    low: float
    high: float
    protocol: Protocol

    @classmethod
    def of(cls, estimate: Estimate, protocol: Protocol) -> Result:
        """The value of an estimate with its bootstrap interval."""
        return cls(estimate.value, *bootstrap_interval(estimate, protocol.seed), protocol)

    def __str__(self) -> str:
        about = self.protocol
        return (
            f"{about.metric} {self.value:.4g} [{self.low:.4g}, {self.high:.4g}] "
            f"({about.features}, n = {about.n} against {about.n_reference})"
        )

    def __sub__(self, other: Result) -> float:
        require_same_protocol(self.protocol, other.protocol)
        return self.value - other.value

    def __truediv__(self, other: Result) -> float:
        require_same_protocol(self.protocol, other.protocol)
        return self.value / other.value

    def __lt__(self, other: Result) -> bool:
        return self - other < 0

    def __le__(self, other: Result) -> bool:
        return self - other <= 0

    def __gt__(self, other: Result) -> bool:
        return self - other > 0

    def __ge__(self, other: Result) -> bool:
        return self - other >= 0

    def to_json(self) -> dict[str, Any]:
        """A JSON object, the inverse of from_json."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Result:
        """The result that to_json wrote; UserError if a field is missing or unknown."""
        result = _build(cls, value, "A result")
        protocol = _build(Protocol, value["protocol"], "A result's protocol")
        return cls(result.value, result.low, result.high, protocol)


def require_same_protocol(first: Protocol, second: Protocol) -> None:
    """UserError naming the first field in which two protocols differ."""
    for item in fields(Protocol):
        ours, theirs = getattr(first, item.name), getattr(second, item.name)
        if item.compare and ours != theirs:
            raise UserError(
                f"Two {first.metric} results cannot be compared: {item.name} is {ours!r} in one "
                f"and {theirs!r} in the other; evaluate both in the same way."
            )


@cache
def warn_of_small_samples() -> None:
    """A warning, once per process, that distances of few images are imprecise."""
    logging.getLogger("latentddm").warning(
        "Fewer than %d images on one side: a Fréchet distance is biased upwards and every interval "
        "is wide; compare only results of the same n.",
        SMALL_SAMPLE,
    )


def _build(kind: Callable[..., Any], value: Any, what: str) -> Any:
    try:
        return kind(**value)
    except TypeError as error:
        raise UserError(f"{what} in the JSON does not have the fields it needs: {error}.") from None
