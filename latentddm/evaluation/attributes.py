"""The attributes of the built-in portraits as features: which of them a generator loses."""

from __future__ import annotations

import hashlib
import json

import torch
from torch import Tensor

from autoencoder.portraits import ATTRIBUTES, classify_attributes
from latentddm.evaluation.estimate import Estimate

_PLACES = [(name, value) for name, values in ATTRIBUTES.items() for value in values]


class AttributeExtractor:
    """One column per value of each attribute: 1 where the reader sees it, 0 elsewhere."""

    name = "portrait-attributes-v1"
    dimension = len(_PLACES)
    resize = "none"
    hash = "sha256:" + hashlib.sha256(json.dumps(_PLACES).encode()).hexdigest()

    def __call__(self, pixels: Tensor) -> Tensor:
        """pixels: uint8 [N, S, S, 3] -> float32 [N, number of values]."""
        readings = classify_attributes(pixels.cpu().numpy())
        columns = [[reading[name] == value for name, value in _PLACES] for reading in readings]
        return torch.tensor(columns, dtype=torch.float32).reshape(len(readings), self.dimension)


def attribute_estimates(a: Tensor, b: Tensor) -> dict[str, Estimate]:
    """The total variation distance of the histograms of each attribute, and the mean of those.

    1/2 sum over values |share in a - share in b|: 0 for equal histograms, 1 for disjoint ones. An
    image's influence is half the sum of the signs at its values.
    """
    gaps = a.double().mean(0) - b.double().mean(0)
    signs = a.double() * gaps.sign() / 2
    estimates = {}
    for attribute in ATTRIBUTES:
        columns = [place for place, (name, _) in enumerate(_PLACES) if name == attribute]
        influence = signs[:, columns].sum(1)
        value = float(gaps[columns].abs().sum() / 2)
        estimates[f"attributes/{attribute}"] = Estimate(value, influence - influence.mean())
    parts = list(estimates.values())
    mean = Estimate(
        sum(part.value for part in parts) / len(parts),
        torch.stack([part.influence for part in parts]).mean(0),
    )
    return {"attributes": mean, **estimates}
