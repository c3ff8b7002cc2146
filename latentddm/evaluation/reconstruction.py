"""Encode and decode images, and measure what came back, and what the latents are like."""

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
    UnreadableImage,
    iterate_pixels,
    open_source,
    select_at_random,
)
from autoencoder.latent_statistics import LatentStatistics, LatentSummary
from autoencoder.models import Autoencoder
from latentddm.engine.errors import UserError
from latentddm.engine.progress import Progress
from latentddm.evaluation.evaluate import evaluate_features
from latentddm.evaluation.extractors import INCEPTION, PYRAMID, open_extractor
from latentddm.evaluation.features import FeatureCollector
from latentddm.evaluation.pairwise import mean_result, open_pair_metrics
from latentddm.evaluation.protocol import Result
from latentddm.evaluation.sizes import SizeChecked

PICTURES = 8
SET_METRICS = {"rfid": (INCEPTION, "fid"), "frechet": (PYRAMID, "frechet")}
"""Distances between the set of originals and that of reconstructions: features and metric."""
DEFAULT_METRICS = ("psnr", "ssim", "lpips", "rfid")


@dataclass(frozen=True, kw_only=True)
class ReconstructionOptions:
    """What is measured, on which images.

    metrics: of psnr, ssim, lpips, rfid, frechet (rfid's stand-in in built-in features). num: at
    most so many images, drawn with the seed. lpips_weights: a file of AlexNet's weights.
    """

    metrics: Sequence[str] = DEFAULT_METRICS
    num: int | None = None
    size: int = 256
    seed: int = 0
    batch_size: int = 16
    workers: int = 0
    lpips_weights: str | None = None
    show_progress: bool = False

    def __post_init__(self) -> None:
        known = ("psnr", "ssim", "lpips", *SET_METRICS)
        for name in self.metrics:
            if name not in known:
                raise UserError(f"There is no metric {name!r}; choose from {', '.join(known)}.")
        if self.num is not None and self.num < 2:
            raise UserError(f"num is {self.num}; at least two images are needed.")
        if self.batch_size < 1:
            raise UserError(f"The batch size must be at least 1, not {self.batch_size}.")


@dataclass(frozen=True)
class Reconstructions:
    """Results by name, the latents' statistics, and a few pictures.

    autoencoder: which one it was. originals, reconstructions: uint8 [k, S, S, 3].
    """

    autoencoder: dict[str, Any]
    results: dict[str, Result]
    latents: LatentSummary
    originals: np.ndarray
    reconstructions: np.ndarray
    unreadable: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """A JSON object: everything but the pictures."""
        return {
            "autoencoder": self.autoencoder,
            "results": {name: result.to_json() for name, result in self.results.items()},
            "latents": self.latents.to_json(),
            "unreadable": self.unreadable,
        }


def evaluate_autoencoder(
    autoencoder: Autoencoder, images: str, options: ReconstructionOptions | None = None
) -> Reconstructions:
    """Measure `autoencoder` on images (a reference of open_source).

    Images are cropped and resized as for encoding; smaller ones are refused, as nothing is
    enlarged. UserError says what is wrong, JobError that weights could not be downloaded.
    """
    options = options or ReconstructionOptions()
    if options.size % autoencoder.factor:
        raise UserError(
            f"Images of {options.size} pixels do not fit the autoencoder {autoencoder.reference}; "
            f"choose a multiple of {autoencoder.factor}."
        )
    source = select_at_random(open_source(images, options.size), options.num, options.seed)
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
    """Takes images batch by batch; keeps numbers, and the first few pictures."""

    def __init__(
        self, autoencoder: Autoencoder, options: ReconstructionOptions, source: str
    ) -> None:
        self.autoencoder, self.options, self.source = autoencoder, options, source
        self.unreadable: list[str] = []
        device = autoencoder.device
        names = [name for name in options.metrics if name not in SET_METRICS]
        self._pairs = open_pair_metrics(names, options.lpips_weights, device)
        self._values: dict[str, list[Tensor]] = {name: [] for name in names}
        self._sets = {
            name: [
                FeatureCollector(open_extractor(features, options.size, device), side)
                for side in ("reconstructions", source)
            ]
            for name, (features, _) in SET_METRICS.items()
            if name in options.metrics
        }
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
        for metric in self._pairs:
            self._values[metric.name].append(metric.measure(pixels, decoded))
        indices = [item.index for item in batch]
        for reconstructed, original in self._sets.values():
            reconstructed.add(indices, decoded)
            original.add(indices, pixels)
        missing = PICTURES - sum(len(shown) for shown, _ in self._shown)
        if missing > 0:  # copies: a slice would keep the whole batch
            self._shown.append((pixels[:missing].clone(), decoded[:missing].clone()))

    def finish(self) -> Reconstructions:
        """What all batches came to; UserError if they were too few."""
        if len(self._digests) < 2:
            raise UserError(
                f"{self.source} holds {len(self._digests)} images that can be read "
                f"({len(self.unreadable)} cannot); two are needed."
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
        metrics = {metric.name: metric for metric in self._pairs}
        digest = hashlib.sha256(b"".join(self._digests)).hexdigest()
        return mean_result(
            metrics[name],
            torch.cat(self._values[name]),
            self.options.size,
            f"sha256:{digest}",
            self.source,
            seed,
        )
