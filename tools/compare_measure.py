"""One cell of tools/compare.py: draw, decode, describe by features, measure, write."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from compare_plan import Cell
from compare_reference import LATENTS, Judgement, Kept, References

from autoencoder.decode import decode_latents
from autoencoder.image_io import image_grid, save_image
from latentddm.engine.atomic_io import write_json
from latentddm.evaluation.evaluate import evaluate_features
from latentddm.evaluation.features import FeatureCollector, FeatureSet
from latentddm.inference.generator import Generator

CHUNK = 500  # images that are drawn, decoded and described before the next: memory is bounded
SHOWN = 8  # images of a cell that are kept as a picture


class Bench:
    """Measures cells on one device; generators are made when first needed, as references are."""

    def __init__(self, judgement: Judgement, references: References) -> None:
        """references: of the judgement, or of one that differs from it in `samples` alone."""
        self.judgement, self.references = judgement, references
        self.device = references.device
        self._generators = Kept()

    def measure(self, cell: Cell, folder: Path) -> None:
        """Write a cell's first images and then its numbers into `folder`, under its key."""
        protocol, generator = self.judgement.to_plain(), self._generator(cell)
        started = time.monotonic()
        features, shown = self._draw_and_describe(cell, generator)
        seconds = time.monotonic() - started
        results: dict[str, Any] = {}
        for space, samples in features.items():
            reference = self.references.features(space, generator.space)
            metrics = self.judgement.metrics_in(space)
            seed, device = self.judgement.seed, self.device
            measured = evaluate_features(samples, reference, metrics, seed=seed, device=device)
            results |= {f"{space}/{name}": each.to_json() for name, each in measured.items()}
        key = cell.key(protocol)
        save_image(folder / f"{key}.png", image_grid(shown, columns=SHOWN))
        entry = {"results": results, "seconds_per_image": seconds / self.judgement.samples}
        write_json(folder / f"{key}.json", cell.describe(protocol) | entry)

    def _draw_and_describe(
        self, cell: Cell, generator: Generator
    ) -> tuple[dict[str, FeatureSet], np.ndarray]:
        """The features of a cell's samples by space, and its first pictures."""
        space, judgement = generator.space, self.judgement
        autoencoder = self.references.autoencoder(space)
        collectors = {
            name: FeatureCollector(self.references.extractor(name, space), str(cell.method))
            for name in judgement.features
        }
        shown = np.empty(0)
        for start in range(0, judgement.samples, CHUNK):
            count = min(CHUNK, judgement.samples - start)
            latents = generator.draw(count, cell.sampling, first=start)
            decoded = latents if judgement.of_pictures else latents[: SHOWN if start == 0 else 0]
            pixels = decode_latents(decoded, autoencoder) if len(decoded) else None
            if start == 0 and pixels is not None:
                shown = pixels[:SHOWN].numpy()
            for name, collector in collectors.items():
                images = latents if name == LATENTS else pixels
                assert images is not None
                collector.add(range(start, start + count), images)
        return {name: collector.features() for name, collector in collectors.items()}, shown

    def _generator(self, cell: Cell) -> Generator:
        run, images = cell.trained.run, cell.method.images
        return self._generators.get((run, images), lambda: Generator.load(run, self.device, images))
