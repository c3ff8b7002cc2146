"""Measures the demo's generators against what they were trained on.

The reference is the autoencoder's reconstructions of training images: what a perfect generator
would give. So the numbers judge the generators; what the autoencoder costs is stated beside them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autoencoder.decode import decode_latents
from autoencoder.metrics import psnr
from autoencoder.models import Autoencoder
from autoencoder.pictures import image_grid, save_image
from autoencoder.portraits import ATTRIBUTES, attribute_histogram, read_attributes
from latentddm.engine.devices import default_device
from latentddm.engine.progress import Progress
from latentddm.evaluation.attributes import AttributeExtractor
from latentddm.evaluation.evaluate import evaluate_features
from latentddm.evaluation.features import FeatureExtractor, FeatureSet, extract_features
from latentddm.evaluation.protocol import Result
from latentddm.evaluation.pyramid import PyramidExtractor
from latentddm.generation import Generator, SamplingConfig
from latentddm.objective import Objective

METRICS = ("frechet", "energy")
ATTRIBUTE_STEPS = 4  # the number of evaluations whose attributes are shown one by one
GRID_COLUMNS, GRID_IMAGES = 8, 32
BATCH_SIZE = 100
REFERENCE_IMAGES = 2000


@dataclass
class MethodResults:
    """One method of the comparison and what was measured of it."""

    key: str
    label: str
    objective: Objective
    training_seconds: float = 0.0
    images_seen: int = 0
    parameters: int = 0
    results: list[dict[str, Any]] = field(default_factory=list)
    histograms: dict[str, dict[str, float]] = field(default_factory=dict)
    attribute_distances: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "key": self.key,
            "label": self.label,
            "training_seconds": self.training_seconds,
            "draws": self.objective.draws,
            "results": self.results,
        }


class Comparison:
    """Holds the reference; every method is measured against it in the same way."""

    def __init__(
        self,
        folder: Path,
        pixels: np.ndarray,
        autoencoder: Autoencoder,
        samples: int,
        portraits: bool,
    ) -> None:
        self.folder, self.autoencoder, self.samples = folder, autoencoder, samples
        originals = pixels[:REFERENCE_IMAGES]
        self.pixels = self._reconstruct(originals)
        self.extractor = PyramidExtractor()
        self.reference = self._features(self.pixels, self.extractor)
        self.attribute_extractor = AttributeExtractor() if portraits else None
        self.attribute_reference = (
            self._features(self.pixels, self.attribute_extractor)
            if self.attribute_extractor
            else None
        )
        self.autoencoder_results = self._measure_autoencoder(originals)
        self.floor, self.protocols = self._measure_floor(pixels[-samples:])

    def measure(self, method: MethodResults, steps: Sequence[int]) -> None:
        """Sample, decode, evaluate and save a grid for each number of evaluations."""
        generator = Generator.load(self.folder / method.key, device=default_device())
        method.images_seen = generator.images
        method.parameters = generator.network.num_parameters()
        work = sum(steps) * self.samples
        with Progress(work, f"evaluate {method.label}", unit="evaluations") as progress:
            for count in steps:
                self._measure_setting(method, generator, count)
                progress.update(count * self.samples)

    def _measure_setting(self, method: MethodResults, generator: Generator, steps: int) -> None:
        started = time.monotonic()
        config = SamplingConfig(steps=steps, batch_size=BATCH_SIZE)
        latents = generator.draw(self.samples, config)
        pixels = decode_latents(latents, self.autoencoder, batch_size=BATCH_SIZE).numpy()
        seconds = time.monotonic() - started

        picture = f"pictures/{method.key}-{steps:02d}.png"
        self._save_grid(picture, pixels)
        measured = self._distances(pixels)
        entry: dict[str, Any] = {
            "steps": steps,
            **{name: _interval(measured[name]) for name in METRICS},
            "attributes": None,
            "picture": picture,
            "seconds_per_image": seconds / self.samples,
        }
        if self.attribute_extractor and self.attribute_reference:
            features = self._features(pixels, self.attribute_extractor)
            distances = evaluate_features(features, self.attribute_reference, ("attributes",))
            entry["attributes"] = distances["attributes"].value
            if steps == ATTRIBUTE_STEPS:
                method.histograms = attribute_histogram(read_attributes(pixels))
                method.attribute_distances = {
                    name: distances[f"attributes/{name}"].value for name in ATTRIBUTES
                }
        method.results.append(entry)

    def to_json(self, methods: Sequence[MethodResults], autoencoder_images: int) -> dict[str, Any]:
        """The report's entries about models, methods and numbers."""
        first = methods[0]
        return {
            "autoencoder": {
                "parameters": sum(part.numel() for part in self.autoencoder.parameters()),
                "factor": self.autoencoder.factor,
                "latent_channels": self.autoencoder.latent_channels,
                "images_seen": autoencoder_images,
                **self.autoencoder_results,
            },
            "generator": {"parameters": first.parameters, "images_seen": first.images_seen},
            "methods": [method.to_json() for method in methods],
            "floor": self.floor,
            "attributes": self._attributes(methods),
            "pictures": {
                "originals": "pictures/originals.png",
                "reconstructions": "pictures/reconstructions.png",
            },
            "protocol": self.protocols,
        }

    def _measure_autoencoder(self, originals: np.ndarray) -> dict[str, float]:
        """What the autoencoder loses: its PSNR, and the distance to the originals."""
        self._save_grid("pictures/originals.png", originals)
        self._save_grid("pictures/reconstructions.png", self.pixels)
        measured = self._distances(originals)
        quality = psnr(torch.from_numpy(originals), torch.from_numpy(self.pixels)).mean()
        return {"psnr": float(quality), **{name: measured[name].value for name in METRICS}}

    def _measure_floor(self, images: np.ndarray) -> tuple[dict[str, Any], dict[str, str]]:
        """How far other reconstructions are from the reference, and the protocol of all numbers."""
        measured = self._distances(self._reconstruct(images))
        values = {name: measured[name].value for name in METRICS}
        protocols = {name: _describe(result) for name, result in measured.items()}
        return {**values, "what": f"reconstructions of {len(images):,} other images"}, protocols

    def _reconstruct(self, pixels: np.ndarray) -> np.ndarray:
        parts = torch.from_numpy(pixels).split(BATCH_SIZE)
        return torch.cat([self.autoencoder.reconstruct(part).cpu() for part in parts]).numpy()

    def _attributes(self, methods: Sequence[MethodResults]) -> dict[str, Any] | None:
        if not all(method.histograms for method in methods):
            return None
        reference = attribute_histogram(read_attributes(self.pixels))
        rows = [
            {
                "name": name,
                "reference": reference[name],
                **{method.key: method.histograms[name] for method in methods},
                "distance": {method.key: method.attribute_distances[name] for method in methods},
            }
            for name in ATTRIBUTES
        ]
        return {"steps": ATTRIBUTE_STEPS, "rows": rows}

    def _distances(self, pixels: np.ndarray) -> dict[str, Result]:
        return evaluate_features(self._features(pixels, self.extractor), self.reference, METRICS)

    def _features(self, pixels: np.ndarray, extractor: FeatureExtractor) -> FeatureSet:
        return extract_features(pixels, extractor, name="demo")

    def _save_grid(self, name: str, pixels: np.ndarray) -> None:
        save_image(self.folder / name, image_grid(pixels[:GRID_IMAGES], columns=GRID_COLUMNS))


def _interval(result: Result) -> dict[str, float]:
    return {"value": result.value, "low": result.low, "high": result.high}


def _describe(result: Result) -> str:
    about = result.protocol
    return (
        f"{about.estimator}; features {about.features} of {about.size} px, {about.resize}; "
        f"n = {about.n:,} against {about.n_reference:,} reconstructions of training images; "
        f"interval: {about.interval}"
    )
