"""An estimate with the influence of each unit on it, and the bootstrap interval made from them.

Resampling whole feature sets would recompute an eigen-decomposition or a matrix of distances a
thousand times, and a resample holds duplicates, which bias a Fréchet distance upwards. The
statistics here are smooth in the sample, so their first-order terms (influence values) are
resampled instead: cheap, and free of that bias (van der Vaart, Asymptotic Statistics, ch. 23).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from latentddm.engine.seeding import numpy_generator

RESAMPLES = 1000
LEVEL = 0.95
DRAWS_AT_ONCE = 1_000_000


@dataclass(frozen=True)
class Estimate:
    """A value and how much each unit moves it.

    influence: [n] float64 with mean about 0; when unit i has weight w_i in the place of 1 / n, the
    value changes by sum_i (w_i - 1 / n) influence_i to first order. unit: what is resampled.
    """

    value: float
    influence: Tensor
    unit: str = "images"


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


def interval_description(estimate: Estimate) -> str:
    """How an interval was made, for the protocol."""
    return f"{LEVEL:.0%} bootstrap over {estimate.unit}, {RESAMPLES} resamples, first order"
