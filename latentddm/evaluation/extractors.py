"""Feature extractors by the names of the command line, and the latents of an autoencoder."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from latentddm.engine.errors import UserError
from latentddm.evaluation.attributes import AttributeExtractor
from latentddm.evaluation.features import SMALLEST_SIZE, FeatureExtractor
from latentddm.evaluation.inception import InceptionExtractor
from latentddm.evaluation.pyramid import PyramidExtractor

INCEPTION = "inception"
DEFAULT_FEATURES = PyramidExtractor.name
"""The built-in space of comparisons that name none: no download, images of any size."""
Device = torch.device | str
Opener = Callable[[str, int, Device], FeatureExtractor]
"""(text after the colon of the name, edge of the images in pixels, device) -> extractor."""


class LatentExtractor:
    """Raw latents of an autoencoder, averaged over `pool` x `pool` cells and flattened.

    Input: latents [N, C, h, w]; with `encode` (pixels uint8 [N, S, S, 3] -> latents) also pixels.
    shape: (C, h, w) of one latent. fingerprint: the autoencoder's. Dimension: C x h/pool x w/pool;
    a Fréchet distance needs several times as many images.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        fingerprint: str,
        *,
        pool: int = 1,
        encode: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        channels, height, width = shape
        if pool < 1 or height % pool or width % pool:
            raise UserError(
                f"Latents of {height} x {width} cannot be averaged over cells of {pool}; "
                "choose a divisor of both."
            )
        self.name = f"latents-pool{pool}"
        self.hash = fingerprint
        self.resize = "none"
        self.dimension = channels * (height // pool) * (width // pool)
        self._shape, self._pool, self._encode = shape, pool, encode

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Latents [N, C, h, w], or pixels if there is an encoder -> float32 [N, D] on the CPU."""
        if images.dtype == torch.uint8 and self._encode is not None:
            images = self._encode(images)
        if not images.is_floating_point() or tuple(images.shape[1:]) != self._shape:
            raise UserError(
                f"The latent features need latents {list(self._shape)}, "
                f"not {images.dtype} {list(images.shape[1:])}."
            )
        return F.avg_pool2d(images.float(), self._pool).flatten(1).cpu()


def open_extractor(name: str, size: int, device: Device = "cpu") -> FeatureExtractor:
    """The extractor called `name`, for images of `size` pixels a side.

    pyramid-v2 (built in), inception (FID's; weights from a package or a download),
    latent:REFERENCE (the latents of an autoencoder), portrait-attributes-v1, and others in
    EXTRACTORS. UserError for another name.
    """
    head, colon, argument = feature_space(name).partition(":")
    opener = EXTRACTORS.get(head + colon)
    if opener is None:
        known = [key + "AUTOENCODER" if key == LATENT else key for key in EXTRACTORS]
        raise UserError(f"There are no features {name!r}; choose one of {', '.join(known)}.")
    return opener(argument, size, device)


def default_extractor(device: Device = "cpu") -> FeatureExtractor:
    """The extractor of DEFAULT_FEATURES."""
    return open_extractor(DEFAULT_FEATURES, SMALLEST_SIZE, device)


def feature_space(name: str) -> str:
    """The name of an extractor in protocols: inception is short for inception-v3-2015."""
    return InceptionExtractor.name if name == INCEPTION else name


def _open_latent(reference: str, size: int, device: Device) -> FeatureExtractor:
    from autoencoder.models import latent_edge, load_autoencoder

    autoencoder = load_autoencoder(reference, device=device)
    edge = latent_edge(autoencoder, size)
    return LatentExtractor(
        (autoencoder.latent_channels, edge, edge),
        autoencoder.fingerprint,
        encode=autoencoder.encode,
    )


LATENT = "latent:"
EXTRACTORS: dict[str, Opener] = {
    PyramidExtractor.name: lambda _, size, device: PyramidExtractor(device),
    InceptionExtractor.name: lambda _, size, device: InceptionExtractor(device=device),
    AttributeExtractor.name: lambda _, size, device: AttributeExtractor(),
    LATENT: _open_latent,
}
"""A key with a colon at its end takes an argument after it."""
