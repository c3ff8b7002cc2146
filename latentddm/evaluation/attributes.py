"""The attributes of the built-in portraits: their feature space, and the metric defined in it."""

from __future__ import annotations

import hashlib
import json

import torch
from torch import Tensor

from autoencoder.portraits import ATTRIBUTES, classify_attributes
from latentddm.evaluation.protocol import Estimate, estimate_from

_COLUMNS = [(name, value) for name, values in ATTRIBUTES.items() for value in values]


class AttributeExtractor:
    """One column per value of each attribute: 1 where the classifier finds it, 0 elsewhere."""

    name = "portrait-attributes-v1"
    dimension = len(_COLUMNS)
    resize = "none"
    hash = "sha256:" + hashlib.sha256(json.dumps(_COLUMNS).encode()).hexdigest()

    def __call__(self, pixels: Tensor) -> Tensor:
        """pixels: uint8 [N, S, S, 3] -> float32 [N, number of values]."""
        found = classify_attributes(pixels.cpu().numpy())
        rows = [[each[name] == value for name, value in _COLUMNS] for each in found]
        return torch.tensor(rows, dtype=torch.float32).reshape(len(found), self.dimension)


def attribute_estimates(a: Tensor, b: Tensor) -> dict[str, Estimate]:
    """Total variation distance of the histograms of each attribute, and the mean over attributes.

    1/2 sum over values |share in a - share in b|: 0 for equal histograms, 1 for disjoint ones. The
    influence of an image is half the sum of the signs of the differences at its values.
    """
    gaps = a.double().mean(0) - b.double().mean(0)
    signs = a.double() * gaps.sign() / 2
    estimates = {}
    for attribute in ATTRIBUTES:
        columns = [column for column, (name, _) in enumerate(_COLUMNS) if name == attribute]
        value = gaps[columns].abs().sum() / 2
        estimates[f"attributes/{attribute}"] = estimate_from(value, signs[:, columns].sum(1))
    parts = list(estimates.values())
    mean = Estimate(
        sum(part.value for part in parts) / len(parts),
        torch.stack([part.influence for part in parts]).mean(0),
    )
    return {"attributes": mean, **estimates}
