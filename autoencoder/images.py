"""Images of any source: the public face of sources, preprocessing and loading.

source = open_source("faces.zip")
for item in iterate_pixels(source, range(len(source)), Preprocessing(size=256), workers=4): ...
"""

from __future__ import annotations

from autoencoder.loading import LoadedPixels, iterate_pixels, read_pixels
from autoencoder.preprocessing import Preprocessing
from autoencoder.sources.protocol import (
    ImageSource,
    LeftOut,
    SourceImage,
    UnreadableImage,
    left_out,
)
from autoencoder.sources.registry import open_source
from autoencoder.sources.selection import Selection, select_at_random
from autoencoder.sources.tar_samples import SampleKeys

__all__ = [
    "ImageSource",
    "LeftOut",
    "LoadedPixels",
    "Preprocessing",
    "SampleKeys",
    "Selection",
    "SourceImage",
    "UnreadableImage",
    "iterate_pixels",
    "left_out",
    "open_source",
    "read_pixels",
    "select_at_random",
]
