"""The embedded default data set: procedural portraits with known attributes, at any size, seeded.

`draw_portrait` draws one, `classify_attributes` recovers the attributes from pixels, and the
distance between attribute histograms measures which values a set of images lacks.
"""

from autoencoder.portraits.attribute_classifier import classify_attributes
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
    "classify_attributes",
    "draw_portrait",
]
