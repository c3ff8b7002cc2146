"""What can differ between two portraits, and how far two sets of portraits differ in it."""

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
"""The values of every attribute. They are drawn uniformly and independently of one another.

Left and right are the viewer's: the side of the picture that the head turns to, or that the light
comes from. A wink closes the eye on the viewer's right.
"""

Histogram = dict[str, dict[str, float]]


@dataclass(frozen=True)
class AttributeDistance:
    """How far the attribute histograms of two sets lie apart: 0 equal, 1 nothing in common."""

    per_attribute: dict[str, float]
    mean: float


def attribute_histogram(readings: Sequence[Mapping[str, str]]) -> Histogram:
    """The share of every value of every attribute among `readings`; they sum to 1 per attribute.

    UserError if `readings` is empty or holds an attribute or a value that does not exist.
    """
    if not readings:
        raise UserError("There are no readings to count; give at least one portrait.")
    histogram = {name: dict.fromkeys(values, 0.0) for name, values in ATTRIBUTES.items()}
    for reading in readings:
        for name, shares in histogram.items():
            value = reading.get(name)
            if value not in shares:
                known = ", ".join(shares)
                raise UserError(f"{name} is {value!r} in a reading; its values are {known}.")
            shares[value] += 1 / len(readings)
    return histogram


def attribute_distance(a: Histogram, b: Histogram) -> AttributeDistance:
    """The total variation distance between two histograms: per attribute, and the mean of those.

    Total variation is half the sum of absolute differences: the share of portraits whose value
    would have to change to turn one histogram into the other.
    """
    per_attribute = {
        name: sum(abs(a[name][value] - b[name][value]) for value in values) / 2
        for name, values in ATTRIBUTES.items()
    }
    return AttributeDistance(per_attribute, sum(per_attribute.values()) / len(per_attribute))
