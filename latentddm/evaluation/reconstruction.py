"""Quality of an autoencoder: its reconstructions of images, and the statistics of its latents."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autoencoder.images import (
    LoadedPixels,
    Preprocessing,
    SampleKeys,
    UnreadableImage,
    iterate_pixels,
    open_source,
    select_at_random,
)
from autoencoder.latent_statistics import LatentStatistics, LatentSummary
from autoencoder.models import Autoencoder, latent_edge
from latentddm.engine.errors import UserError
from latentddm.engine.progress import Progress
from latentddm.evaluation.evaluate import evaluate_features
from latentddm.evaluation.extractors import DEFAULT_FEATURES, INCEPTION, open_extractor
from latentddm.evaluation.features import FeatureCollector
from latentddm.evaluation.image_pairs import PAIR_METRICS, mean_result
from latentddm.evaluation.protocol import Result
from latentddm.evaluation.sources import SizeChecked

KEPT_IMAGES = 8
SET_METRICS = {"rfid": (INCEPTION, "fid"), "frechet": (DEFAULT_FEATURES, "frechet")}
"""Distances of the set of reconstructions from that of originals: features and metric."""
DEFAULT_METRICS = ("psnr", "ssim", "lpips", "rfid")


@dataclass(frozen=True, kw_only=True)
class ReconstructionOptions:
    """Options of the evaluation of an autoencoder.

    metrics: of psnr, ssim, lpips, rfid, frechet (rfid in the built-in features). num: at most so
    many images, drawn with the seed. size: edge of the images in pixels. sample_keys: "whole" for
    samples of tar shards whose names hold dots. lpips_weights: a file of AlexNet's weights; None
    takes torch's cache of downloads.
    """

    metrics: Sequence[str] = DEFAULT_METRICS
    num: int | None = None
    size: int = 256
    seed: int = 0
    sample_keys: SampleKeys = "webdataset"
    batch_size: int = 16
    workers: int = 0
    lpips_weights: str | None = None
    show_progress: bool = False

    def __post_init__(self) -> None:
        known = (*PAIR_METRICS, *SET_METRICS)
        for name in self.metrics:
            if name not in known:
                raise UserError(f"There is no metric {name!r}; choose from {', '.join(known)}.")
        if self.num is not None and self.num < 2:
            raise UserError(f"num is {self.num}; at least two images are needed.")
        if self.batch_size < 1:
            raise UserError(f"The batch size must be at least 1, not {self.batch_size}.")


@dataclass(frozen=True)
class Reconstructions:
    """Results by name, the statistics of the latents, and a few images.

    autoencoder: its reference, fingerprint and shape. originals, reconstructions: uint8
    [k, S, S, 3]. unreadable: the images left out, with reasons.
    """

    autoencoder: dict[str, Any]
    results: dict[str, Result]
    latents: LatentSummary
    originals: np.ndarray
    reconstructions: np.ndarray
    unreadable: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """A JSON object: everything but the images."""
        return {
            "autoencoder": self.autoencoder,
            "results": {name: result.to_json() for name, result in self.results.items()},
            "latents": self.latents.to_json(),
            "unreadable": self.unreadable,
        }


def evaluate_autoencoder(
    autoencoder: Autoencoder, images: str, options: ReconstructionOptions | None = None
) -> Reconstructions:
    """Measure the reconstructions and latents of images (a reference of open_source).

    Images are cropped and resized as for encoding; smaller ones are refused, as nothing is
    enlarged. UserError for a wrong request, JobError if weights cannot be downloaded.
    """
    options = options or ReconstructionOptions()
    latent_edge(autoencoder, options.size)  # refused before anything is read
    whole = open_source(images, options.size, sample_keys=options.sample_keys)
    source = select_at_random(whole, options.num, options.seed)
    checked = SizeChecked(source, options.size, exact=False)
    measuring = _Measuring(autoencoder, options, source.name)
    preprocessing = Preprocessing(size=options.size)
    batch: list[LoadedPixels] = []
    with Progress(len(checked), "reconstruct", show=options.show_progress) as progress:
        for item in iterate_pixels(checked, range(len(checked)), preprocessing, options.workers):
            if isinstance(item, UnreadableImage):
                measuring.unreadable.append(str(item))
            else:
                batch.append(item)
            if len(batch) == options.batch_size:
                measuring.add(batch)
                batch = []
            progress.update(1)
    if batch:
        measuring.add(batch)
    return measuring.finish()


class _Measuring:
    """Accumulates the measurements batch by batch, and the first few images."""

    def __init__(
        self, autoencoder: Autoencoder, options: ReconstructionOptions, source: str
    ) -> None:
        self.autoencoder, self.options, self.source = autoencoder, options, source
        self.unreadable: list[str] = []
        device = autoencoder.device
        self._pairs = {
            name: PAIR_METRICS[name](options.lpips_weights, device)
            for name in options.metrics
            if name not in SET_METRICS
        }
        self._values: dict[str, list[Tensor]] = {name: [] for name in self._pairs}
        self._sets: dict[str, list[FeatureCollector]] = {}
        for name, (features, _) in SET_METRICS.items():
            if name in options.metrics:
                extractor = open_extractor(features, options.size, device)
                sides = ("reconstructions", source)
                self._sets[name] = [FeatureCollector(extractor, side) for side in sides]
        self._latents = LatentStatistics()
        self._digests: list[bytes] = []
        self._shown: list[tuple[Tensor, Tensor]] = []

    def add(self, batch: list[LoadedPixels]) -> None:
        """Measure one batch."""
        pixels = torch.from_numpy(np.stack([item.pixels for item in batch]))
        latents = self.autoencoder.encode(pixels)
        decoded = self.autoencoder.decode(latents).cpu()
        self._latents.add(latents)
        self._digests += [hashlib.sha256(item.pixels.tobytes()).digest() for item in batch]
        for name, metric in self._pairs.items():
            self._values[name].append(metric.measure(pixels, decoded))
        indices = [item.index for item in batch]
        for reconstructed, original in self._sets.values():
            reconstructed.add(indices, decoded)
            original.add(indices, pixels)
        missing = KEPT_IMAGES - sum(len(shown) for shown, _ in self._shown)
        if missing > 0:  # copies: a slice would keep the whole batch
            self._shown.append((pixels[:missing].clone(), decoded[:missing].clone()))

    def finish(self) -> Reconstructions:
        """The measurements of all batches; UserError for fewer than two images."""
        if len(self._digests) < 2:
            raise UserError(
                f"{self.source} holds {len(self._digests)} readable images "
                f"({len(self.unreadable)} unreadable ones); give at least two."
            )
        originals, decoded = (torch.cat(part).numpy() for part in zip(*self._shown, strict=True))
        return Reconstructions(
            autoencoder={
                "reference": self.autoencoder.reference,
                "fingerprint": self.autoencoder.fingerprint,
                "factor": self.autoencoder.factor,
                "latent_channels": self.autoencoder.latent_channels,
                "dtype": str(self.autoencoder.dtype).removeprefix("torch."),
            },
            results={name: self._result(name) for name in self.options.metrics},
            latents=self._latents.summary(),
            originals=originals,
            reconstructions=decoded,
            unreadable=self.unreadable,
        )

    def _result(self, name: str) -> Result:
        seed = self.options.seed
        if name in SET_METRICS:
            metric = SET_METRICS[name][1]
            reconstructed, original = (side.features() for side in self._sets[name])
            return evaluate_features(reconstructed, original, [metric], seed=seed)[metric]
        digest = hashlib.sha256(b"".join(self._digests)).hexdigest()
        return mean_result(
            name,
            self._pairs[name],
            torch.cat(self._values[name]),
            size=self.options.size,
            images_hash=f"sha256:{digest}",
            source=self.source,
            seed=seed,
        )
