"""How tools/compare.py judges: the protocol of a comparison, and the reference that it needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from autoencoder.decode import IMAGES_AT_ONCE
from autoencoder.images import Preprocessing, open_source, read_pixels, select_at_random
from autoencoder.models import Autoencoder
from autoencoder.store import LatentStore
from autoencoder.store.plan import hash_keys
from latentddm.engine.errors import UserError
from latentddm.evaluation.extractors import (
    DEFAULT_FEATURES,
    INCEPTION,
    LatentExtractor,
    open_extractor,
)
from latentddm.evaluation.features import FeatureExtractor, FeatureSet, extract_features
from latentddm.evaluation.inception import InceptionExtractor
from latentddm.evaluation.metrics import find_metric
from latentddm.inference.latent_space import LatentSpace

LATENTS = "latents"  # the space of the generator itself: nothing is decoded for it
CHUNK = 100  # images that are described at once
Made = TypeVar("Made")


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """How samples are judged: what every number of a comparison has in common.

    reference: a source of images, for features of pictures; reconstructed: their reconstructions
    are the reference, the best that a generator could do. store: of latents, the
    reference of the space `latents`. features: spaces; metrics: in each space those it has.
    content: what the reference holds now (`with_content`): measured against another, nothing holds.
    """

    samples: int = 10_000
    reference: str | None = None
    store: str | None = None
    reference_images: int = 10_000
    reconstructed: bool = False
    features: tuple[str, ...] = (DEFAULT_FEATURES,)
    metrics: tuple[str, ...] = ("frechet", "energy")
    seed: int = 0
    content: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """UserError for a metric that is measured nowhere, or for a missing reference."""
        for metric in self.metrics:
            if not any(metric in self.metrics_in(space) for space in self.features):
                raise UserError(f"The metric {metric} is not defined in the given --features.")
        if self.of_pictures and self.reference is None:
            raise UserError("Features of pictures need --reference SRC; or use latents.")
        if min(self.samples, self.reference_images) < 2:
            raise UserError("--samples and --reference-images must be at least 2.")

    @property
    def of_pictures(self) -> bool:
        """Whether anything has to be decoded."""
        return any(space != LATENTS for space in self.features)

    def metrics_in(self, space: str) -> list[str]:
        """The metrics that are measured in a space."""
        space = InceptionExtractor.name if space == INCEPTION else space
        return [name for name in self.metrics if find_metric(name).features in (None, space)]

    @property
    def distances(self) -> list[str]:
        """The names "features/metric" by which a setting may be the best: less is better."""
        return [
            f"{space}/{name}"
            for space in self.features
            for name in self.metrics_in(space)
            if name != "prdc"
        ]

    def to_plain(self) -> dict[str, Any]:
        """Plain JSON values, for the key of a cell."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in vars(self).items()}


def with_content(judgement: Judgement) -> Judgement:
    """The judgement with the number and the names of the images that its reference has now."""
    content = []
    if judgement.of_pictures:
        source = open_source(str(judgement.reference))
        keys = hash_keys(source.key(index) for index in range(len(source)))
        content.append(f"{len(source)} images, {keys}")
    if LATENTS in judgement.features:
        store = LatentStore(str(judgement.store))
        content.append(f"{len(store)} latents, {store.manifest.plan.source['keys']}")
    return replace(judgement, content=tuple(content))


class Kept:
    """Things that are made when they are first needed, and kept."""

    def __init__(self) -> None:
        self._made: dict[Any, Any] = {}

    def get(self, key: Any, make: Callable[[], Made]) -> Made:
        """The thing made under `key`, or made now by `make`."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


class References:
    """Autoencoders, extractors and reference features for any latent space, each made once."""

    def __init__(self, judgement: Judgement, device: torch.device) -> None:
        self.judgement, self.device = judgement, device
        self._kept = Kept()

    def autoencoder(self, space: LatentSpace) -> Autoencoder:
        return self._kept.get(
            ("autoencoder", space.fingerprint), lambda: space.load_autoencoder(self.device)
        )

    def extractor(self, name: str, space: LatentSpace) -> FeatureExtractor:
        """The extractor `name` for pictures (or latents) of a latent space."""
        if name == LATENTS:
            return LatentExtractor(space.shape, space.fingerprint)
        size = self._size(space)
        return self._kept.get(
            ("extractor", name, size), lambda: open_extractor(name, size, self.device)
        )

    def features(self, name: str, space: LatentSpace) -> FeatureSet:
        """The reference's features."""
        own = name == LATENTS or self.judgement.reconstructed
        key = ("features", name, space.fingerprint if own else self._size(space))
        return self._kept.get(key, lambda: self._describe(name, space))

    def _describe(self, name: str, space: LatentSpace) -> FeatureSet:
        of_latents = name == LATENTS
        source = self.judgement.store if of_latents else self.judgement.reference
        extractor = self.extractor(name, space)
        images = self._latents(space) if of_latents else self._pixels(space)
        return extract_features(images, extractor, name=str(source), batch_size=CHUNK)

    def _pixels(self, space: LatentSpace) -> Tensor:
        """The reference's pictures, uint8 [N, S, S, 3]."""
        judgement, size = self.judgement, self._size(space)
        key = ("pixels", size, space.fingerprint if judgement.reconstructed else None)

        def read() -> Tensor:
            source = open_source(str(judgement.reference), size)
            chosen = select_at_random(source, judgement.reference_images, judgement.seed)
            pixels = torch.from_numpy(read_pixels(chosen, Preprocessing(size=size), workers=0)[0])
            if not judgement.reconstructed:
                return pixels
            autoencoder = self.autoencoder(space)
            parts = pixels.split(IMAGES_AT_ONCE)
            return torch.cat([autoencoder.reconstruct(part).cpu() for part in parts])

        return self._kept.get(key, read)

    def _latents(self, space: LatentSpace) -> Tensor:
        """Raw latents of the store, [N, C, h, w], in its own shuffled order."""
        store = LatentStore(str(self.judgement.store))
        if store.fingerprint != space.fingerprint:
            raise UserError(
                f"{self.judgement.store} and a run belong to different autoencoders, so their "
                "latents cannot be compared; use features of pictures."
            )
        count = min(self.judgement.reference_images, len(store))
        return store.restore(next(store.stream(count, seed=self.judgement.seed)).latents.cpu())

    def _size(self, space: LatentSpace) -> int:
        return space.shape[1] * self.autoencoder(space).factor
