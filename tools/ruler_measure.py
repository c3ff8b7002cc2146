"""One piece of tools/ruler.py: the features of an image set in one space, and its distances."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ruler_sets import REFERENCE, ImageSets
from safetensors import safe_open
from safetensors.torch import save_file

from latentddm.engine.atomic_io import atomic_path, make_folder, read_json, write_json
from latentddm.evaluation.evaluate import evaluate_features
from latentddm.evaluation.extractors import open_extractor
from latentddm.evaluation.features import (
    FeatureExtractor,
    FeatureSet,
    FeatureSpace,
    extract_features,
)

METRICS = ("frechet", "kernel", "prdc")


@dataclass(frozen=True)
class Piece:
    """An image set in a feature space."""

    sets: ImageSets
    space: str
    name: str

    def describe(self) -> dict[str, Any]:
        """Plain JSON values: everything that the features depend on."""
        return {"space": self.space, **self.sets.describe(self.name)}

    def file_name(self, suffix: str, reference: bool = False) -> str:
        """A name that changes with the piece; with `reference`, with that of the sets too."""
        about = self.describe()
        if reference:
            about["reference"] = self.sets.describe(REFERENCE)
        digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
        return f"{self.name}-{digest[:12]}{suffix}"


class Bench:
    """Measures pieces: features are extracted once, and figures written as soon as known."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        for part in ("figures", "features"):
            make_folder(folder / part)
        self._opened: dict[tuple[str, int], FeatureExtractor] = {}
        self._references: dict[str, FeatureSet] = {}

    def figures(self, piece: Piece) -> dict[str, Any]:
        """The distances of a piece to the reference, measured unless they have been before.

        {"results": {metric: result}, "seconds_per_1000": processor seconds for 1,000 pictures}.
        """
        path = self._folder / "figures" / piece.file_name(".json", reference=True)
        extractor = self._extractor(piece)
        if path.is_file():
            values = read_json(path)
            if values["features_hash"] == extractor.hash:
                return values
        results = evaluate_features(self._features(piece), self._reference(piece), METRICS)
        values = piece.describe() | {
            "features_hash": extractor.hash,
            "dimension": extractor.dimension,
            "seconds_per_1000": self._seconds(piece),
            "results": {name: result.to_json() for name, result in results.items()},
        }
        write_json(path, values)
        return values

    def _reference(self, piece: Piece) -> FeatureSet:
        of_reference = Piece(piece.sets, piece.space, REFERENCE)
        key = of_reference.file_name("")
        if key not in self._references:
            self._references[key] = self._features(of_reference)
        return self._references[key]

    def _features(self, piece: Piece) -> FeatureSet:
        """The features of a set, read if they have been extracted before."""
        path, extractor = self._features_path(piece), self._extractor(piece)
        if path.is_file():
            with safe_open(path, "pt") as stored:
                about = stored.metadata()
                values, digests = stored.get_tensor("values"), stored.get_tensor("digests")
            if about["hash"] == extractor.hash:
                return FeatureSet(
                    values=values,
                    indices=tuple(range(len(values))),
                    digests=tuple(bytes(row.tolist()) for row in digests),
                    size=piece.sets.size,
                    name=piece.name,
                    space=FeatureSpace(extractor.name, extractor.hash, extractor.resize),
                )
        pixels = piece.sets.pixels(piece.name)
        started = time.process_time()
        features = extract_features(pixels, extractor, name=piece.name)
        seconds = 1000 * (time.process_time() - started) / len(pixels)
        digests = torch.tensor([list(digest) for digest in features.digests], dtype=torch.uint8)
        with atomic_path(path) as temporary:
            save_file(
                {"values": features.values, "digests": digests},
                temporary,
                metadata={"hash": extractor.hash, "seconds_per_1000": f"{seconds:.4g}"},
            )
        return features

    def _seconds(self, piece: Piece) -> float:
        with safe_open(self._features_path(piece), "pt") as stored:
            return float(stored.metadata()["seconds_per_1000"])

    def _features_path(self, piece: Piece) -> Path:
        return self._folder / "features" / piece.file_name(".safetensors")

    def _extractor(self, piece: Piece) -> FeatureExtractor:
        key = (piece.space, piece.sets.size)
        if key not in self._opened:
            self._opened[key] = open_extractor(*key)
        return self._opened[key]
