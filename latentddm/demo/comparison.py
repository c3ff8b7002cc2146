"""Distances of the demo's generators to their training data.

The reference is training images as the autoencoder sees them: their latents, and their
reconstructions: those of a perfect generator. So these numbers judge the generators. Distances from
the originals, which hold the loss of the autoencoder too, stand beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autoencoder.decode import IMAGES_AT_ONCE, decode_latents
from autoencoder.image_io import image_grid, save_image
from autoencoder.metrics import psnr
from autoencoder.models import Autoencoder
from autoencoder.portraits import ATTRIBUTES, attribute_histogram, classify_attributes
from autoencoder.store import LatentStore
from latentddm.demo.autoencoder_choice import warning_of
from latentddm.demo.config import DemoConfig
from latentddm.demo.reference import (
    COMPARED_WITH,
    LATENTS,
    METRICS,
    ORIGINALS,
    RECONSTRUCTIONS,
    Reference,
    describe,
    interval,
    latent_pool,
)
from latentddm.engine.atomic_io import make_folder
from latentddm.engine.devices import default_device
from latentddm.engine.progress import Progress
from latentddm.engine.run import RunFolder
from latentddm.engine.seeding import numpy_generator
from latentddm.evaluation.attributes import AttributeExtractor
from latentddm.evaluation.evaluate import evaluate_features
from latentddm.evaluation.extractors import LatentExtractor, default_extractor
from latentddm.evaluation.features import extract_features
from latentddm.evaluation.image_pairs import LARGEST_PSNR
from latentddm.evaluation.protocol import Result
from latentddm.inference.generator import Generator
from latentddm.report.tables import headline_steps

ATTRIBUTE_STEPS = 4  # the number of evaluations whose attributes are shown one by one
GRID_COLUMNS, GRID_IMAGES = 8, 32
TOP_COLUMNS, TOP_IMAGES = 4, 16  # of the larger grids at the top of the report
BATCH_SIZE = 100  # of the generator


@dataclass
class MethodResults:
    """One method of the comparison and its measurements."""

    key: str
    label: str
    draws: int  # for each x_t in training
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
            "images_seen": self.images_seen,
            "parameters": self.parameters,
            "draws": self.draws,
            "results": self.results,
        }


class Comparison:
    """Holds the reference; every method is measured against it in the same way."""

    def __init__(
        self,
        folder: Path,
        pixels: np.ndarray,
        store: LatentStore,
        autoencoder: Autoencoder,
        config: DemoConfig,
        portraits: bool,
    ) -> None:
        self.folder, self.store, self.autoencoder = folder, store, autoencoder
        make_folder(folder / "pictures")
        # A source may be sorted: its first images need not look like its last.
        order = numpy_generator(0, "reference").permutation(len(pixels))
        count = min(config.reference, len(pixels) // 2)
        originals, others = pixels[order[:count]], pixels[order[count:][: config.samples]]
        self.samples = len(others)  # as many of a method as of real ones: distances have a bias
        latents = self._encode(originals)
        self.pixels = self._decode(latents)
        extractor = default_extractor()
        self.pictures = Reference.of(RECONSTRUCTIONS, extractor, self.pixels)
        self.originals = Reference.of(ORIGINALS, extractor, originals)
        self.pool = latent_pool(store.shape)
        space = LatentExtractor(store.shape, autoencoder.fingerprint, pool=self.pool)
        self.latents = Reference.of(LATENTS, space, store.standardise(latents))
        self.attributes = Reference.of("", AttributeExtractor(), self.pixels) if portraits else None
        self.side_by_side: dict[str, Any] = {}
        self.autoencoder_results = self._measure_autoencoder(originals)
        self.floor, self.protocols = self._measure_floor(others)

    def measure(self, method: MethodResults, steps: Sequence[int]) -> None:
        """Sample, decode, evaluate and save a grid for each number of evaluations."""
        generator = Generator.load(self.folder / method.key, device=default_device())
        run = RunFolder(self.folder / method.key)
        method.images_seen = generator.images
        method.training_seconds = run.effort(generator.images).seconds
        method.parameters = generator.network.num_parameters()
        work = sum(steps) * self.samples
        with Progress(work, f"evaluate {method.label}", unit="evaluations") as progress:
            for count in steps:
                pixels = self._measure_setting(method, generator, count)
                if method.key == "ddm" and count == headline_steps(steps):
                    self._show_at_the_top(method, count, pixels)
                progress.update(count * self.samples)

    def _measure_setting(
        self, method: MethodResults, generator: Generator, steps: int
    ) -> np.ndarray:
        """The entry of one number of evaluations; returns the pictures."""
        sampler = generator.run_settings.sampler  # as the labels say, whatever else was measured
        sampling = replace(sampler.settings(steps), batch_size=BATCH_SIZE)
        latents = generator.draw(self.samples, sampling)
        pixels = self._decode(latents)

        picture = f"pictures/{method.key}-{steps:02d}.png"
        self._save_grid(picture, pixels)
        entry: dict[str, Any] = {
            "steps": steps,
            **{name: interval(result) for name, result in self._distances(latents, pixels).items()},
            "attributes": None,
            "picture": picture,
        }
        if self.attributes:
            features = extract_features(pixels, self.attributes.extractor, name="demo")
            distances = evaluate_features(features, self.attributes.features, ("attributes",))
            entry["attributes"] = distances["attributes"].value
            if steps == ATTRIBUTE_STEPS:
                method.histograms = attribute_histogram(classify_attributes(pixels))
                method.attribute_distances = {
                    name: distances[f"attributes/{name}"].value for name in ATTRIBUTES
                }
        method.results.append(entry)
        return pixels

    def to_json(self, methods: Sequence[MethodResults], autoencoder_images: int) -> dict[str, Any]:
        """The report's entries about models, methods and numbers."""
        return {
            "autoencoder": {
                "parameters": sum(part.numel() for part in self.autoencoder.parameters()),
                "reference": self.autoencoder.reference,
                "factor": self.autoencoder.factor,
                "latent_channels": self.autoencoder.latent_channels,
                "images_seen": autoencoder_images,
                "warning": warning_of(self.autoencoder_results["psnr"], autoencoder_images > 0),
                **self.autoencoder_results,
            },
            "methods": [method.to_json() for method in methods],
            "floor": self.floor,
            "attributes": self._attribute_table(methods),
            "pictures": {
                "originals": "pictures/originals.png",
                "reconstructions": "pictures/reconstructions.png",
            },
            "side_by_side": self.side_by_side,
            "protocol": self.protocols,
        }

    def _measure_autoencoder(self, originals: np.ndarray) -> dict[str, float]:
        """Loss of the autoencoder: its PSNR, and the distance to the originals."""
        for name, pixels in (("originals", originals), ("reconstructions", self.pixels)):
            self._save_grid(f"pictures/{name}.png", pixels)
            self._save_top(name, pixels)
        measured = self.pictures.distances_of(self.originals.features)
        errors = psnr(torch.from_numpy(originals), torch.from_numpy(self.pixels))
        kept = float(errors.clamp_max(LARGEST_PSNR).mean())  # infinite for pixels themselves
        return {"psnr": kept, **{name: measured[name].value for name in METRICS}}

    def _measure_floor(self, images: np.ndarray) -> tuple[dict[str, Any], dict[str, str]]:
        """How far other training images are from the reference; the protocol of all numbers."""
        latents = self._encode(images)
        measured = self._distances(latents, self._decode(latents))
        values = {name: result.value for name, result in measured.items()}
        protocols = {
            prefix + name: describe(measured[prefix + name], prefix, self.pool)
            for prefix in COMPARED_WITH
            for name in METRICS
        }
        return {**values, "what": f"{len(images):,} other images of the same source"}, protocols

    def _show_at_the_top(self, method: MethodResults, steps: int, pixels: np.ndarray) -> None:
        self._save_top("draws", pixels)
        self.side_by_side |= {"method": method.label, "steps": steps}

    def _encode(self, pixels: np.ndarray) -> Tensor:
        parts = torch.from_numpy(pixels).split(IMAGES_AT_ONCE)
        return torch.cat([self.autoencoder.encode(part).cpu() for part in parts])

    def _decode(self, latents: Tensor) -> np.ndarray:
        return decode_latents(latents, self.autoencoder).numpy()

    def _distances(self, latents: Tensor, pixels: np.ndarray) -> dict[str, Result]:
        in_latents = self.latents.distances(self.store.standardise(latents))
        features = extract_features(pixels, self.pictures.extractor, name="demo")
        in_pictures = self.pictures.distances_of(features) | self.originals.distances_of(features)
        return in_pictures | in_latents

    def _attribute_table(self, methods: Sequence[MethodResults]) -> dict[str, Any] | None:
        if not all(method.histograms for method in methods):
            return None
        reference = attribute_histogram(classify_attributes(self.pixels))
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

    def _save_grid(self, name: str, pixels: np.ndarray) -> None:
        save_image(self.folder / name, image_grid(pixels[:GRID_IMAGES], columns=GRID_COLUMNS))

    def _save_top(self, name: str, pixels: np.ndarray) -> None:
        self.side_by_side[name] = f"pictures/top-{name}.png"
        grid = image_grid(pixels[:TOP_IMAGES], columns=TOP_COLUMNS)
        save_image(self.folder / self.side_by_side[name], grid)
