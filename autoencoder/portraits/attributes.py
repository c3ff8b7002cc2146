"""Attributes of portraits, their histograms, and the distance between two histograms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from latentddm.engine.errors import UserError

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "background": ("coral", "mustard", "mint", "sky", "lilac", "teal"),
    "light": ("left", "right"),
    "pose": ("left", "front", "right"),
    "skin": ("porcelain", "peach", "honey", "brown", "umber"),
    "hair": ("short", "bun", "bob", "long", "curly"),
    "hair_colour": ("black", "brown", "copper", "blond", "silver"),
    "eyes": ("open", "closed", "wink"),
    "mouth": ("smile", "neutral", "open"),
    "glasses": ("none", "round", "square"),
    "clothes": ("cream", "red", "green", "blue", "charcoal"),
    "neckline": ("crew", "v", "turtleneck"),
}
"""The values of every attribute, drawn uniformly and independently.

Left and right are the viewer's: the side of the image to which the head is turned, or from which
the light comes. A wink closes the eye on the viewer's right.
"""

Histogram = dict[str, dict[str, float]]


@dataclass(frozen=True)
class AttributeDistance:
    """Total variation between the attribute histograms of two sets, 0 (equal) to 1 (disjoint)."""

    per_attribute: dict[str, float]
    mean: float


def attribute_histogram(portraits: Sequence[Mapping[str, str]]) -> Histogram:
    """The share of every value of every attribute; the shares of an attribute sum to 1.

    portraits: the attributes of each portrait. UserError for none, or for an unknown value.
    """
    if not portraits:
        raise UserError("A histogram of no portraits is undefined; give at least one portrait.")
    histogram = {name: dict.fromkeys(values, 0.0) for name, values in ATTRIBUTES.items()}
    for attributes in portraits:
        for name, shares in histogram.items():
            value = attributes.get(name)
            if value not in shares:
                known = ", ".join(shares)
                raise UserError(f"{name} is {value!r} in a portrait; use one of {known}.")
            shares[value] += 1 / len(portraits)
    return histogram


def attribute_distance(a: Histogram, b: Histogram) -> AttributeDistance:
    """The total variation between two histograms, per attribute, and its mean over attributes.

    Half the sum of absolute differences: the smallest share of portraits with a changed value that
    turns one histogram into the other.
    """
    per_attribute = {
        name: sum(abs(a[name][value] - b[name][value]) for value in values) / 2
        for name, values in ATTRIBUTES.items()
    }
    return AttributeDistance(per_attribute, sum(per_attribute.values()) / len(per_attribute))
