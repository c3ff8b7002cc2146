"""The embedded default data set: procedural portraits with known attributes, at any size, seeded.

`draw_portrait` paints one, `read_attributes` recovers the attributes from pixels alone, and the
histogram functions say which attributes a set of pictures has lost.
"""

from autoencoder.portraits.attribute_classifier import read_attributes
from autoencoder.portraits.attributes import (
    ATTRIBUTES,
    AttributeDistance,
    Histogram,
    attribute_distance,
    attribute_histogram,
)
from autoencoder.portraits.drawing import draw_portrait

__all__ = [
    "ATTRIBUTES",
    "AttributeDistance",
    "Histogram",
    "attribute_distance",
    "attribute_histogram",
    "draw_portrait",
    "read_attributes",
]
