"""Feature extractors by the names that the command line takes."""

from __future__ import annotations

import torch

from latentddm.engine.errors import UserError
from latentddm.evaluation.features import FeatureExtractor
from latentddm.evaluation.inception import InceptionExtractor
from latentddm.evaluation.latents import LatentExtractor
from latentddm.evaluation.metrics import ATTRIBUTE_FEATURES
from latentddm.evaluation.pyramid import PyramidExtractor

PYRAMID = PyramidExtractor.name
INCEPTION = "inception"
LATENT_PREFIX = "latent:"


def open_extractor(name: str, size: int, device: torch.device | str = "cpu") -> FeatureExtractor:
    """The extractor called `name`, for images of `size` pixels a side.

    pyramid-v1 (built in), inception (FID's; weights from a package or a download),
    latent:REFERENCE (the latents of an autoencoder), portrait-attributes-v1. UserError for
    another name.
    """
    if name == PYRAMID:
        return PyramidExtractor(device)
    if name in (INCEPTION, InceptionExtractor.name):
        return InceptionExtractor(device=device)
    if name == ATTRIBUTE_FEATURES:
        from latentddm.evaluation.attributes import AttributeExtractor

        return AttributeExtractor()
    if name.startswith(LATENT_PREFIX):
        return _open_latent(name.removeprefix(LATENT_PREFIX), size, device)
    raise UserError(
        f"There are no features {name!r}; choose {PYRAMID}, {INCEPTION} or "
        f"{LATENT_PREFIX}AUTOENCODER."
    )


def _open_latent(reference: str, size: int, device: torch.device | str) -> FeatureExtractor:
    from autoencoder.models import load_autoencoder

    autoencoder = load_autoencoder(reference, device=device)
    side, rest = divmod(size, autoencoder.factor)
    if rest:
        raise UserError(
            f"Images of {size} pixels do not fit the autoencoder {reference}, which divides them "
            f"by {autoencoder.factor}; choose a multiple of it."
        )
    return LatentExtractor(
        (autoencoder.latent_channels, side, side),
        autoencoder.fingerprint,
        encode=autoencoder.encode,
    )
