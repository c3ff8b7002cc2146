"""Portraits: deterministic at any size, with attributes that are recoverable from pixels."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from autoencoder.portraits import (
    ATTRIBUTES,
    attribute_distance,
    attribute_histogram,
    classify_attributes,
    draw_portrait,
)
from autoencoder.portraits.canvas import Canvas, Frame
from autoencoder.portraits.face_parameters import FaceParameters, draw_parameters
from autoencoder.portraits.shapes import Shape, ellipse, rounded_box, stroke
from latentddm.engine.errors import UserError

UNSEEN_SEED = 3


def draw_many(count: int, size: int) -> tuple[np.ndarray, list[dict[str, str]]]:
    drawn = [draw_portrait(index, size, UNSEEN_SEED) for index in range(count)]
    return np.stack([pixels for pixels, _ in drawn]), [attributes for _, attributes in drawn]


def accuracies(pixels: np.ndarray, truth: list[dict[str, str]]) -> dict[str, float]:
    found = classify_attributes(pixels)
    return {
        name: float(np.mean([r[name] == t[name] for r, t in zip(found, truth, strict=True)]))
        for name in ATTRIBUTES
    }


def area_mean(pixels: np.ndarray, size: int) -> np.ndarray:
    cell = pixels.shape[0] // size
    return pixels.astype(float).reshape(size, cell, size, cell, 3).mean(axis=(1, 3))


@pytest.fixture(scope="module")
def portraits() -> tuple[np.ndarray, list[dict[str, str]]]:
    return draw_many(1000, 64)


@pytest.fixture(scope="module")
def parameters() -> list[FaceParameters]:
    return [draw_parameters(index, UNSEEN_SEED) for index in range(6000)]


def test_another_process_draws_the_same_pixels() -> None:
    code = (
        "import hashlib; from autoencoder.portraits import draw_portrait\n"
        "for i in (5, 3): p, a = draw_portrait(i, 48, 7); "
        "print(hashlib.sha256(p.tobytes()).hexdigest(), sorted(a.items()))"
    )
    root = Path(__file__).parents[2]
    there = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True
    )
    here = []
    for index in (3, 5):  # in the other order: portraits are independent of one another
        pixels, attributes = draw_portrait(index, 48, 7)
        digest = hashlib.sha256(pixels.tobytes()).hexdigest()
        here.append(f"{digest} {sorted(attributes.items())}")
    assert there.stdout.split("\n")[:2] == here[::-1]


def test_index_and_seed_both_matter() -> None:
    one, other, reseeded = (draw_portrait(*ask)[0] for ask in ((0, 32), (1, 32), (0, 32, 1)))
    assert not np.array_equal(one, other)
    assert not np.array_equal(one, reseeded)


@pytest.mark.parametrize("size", [96, 256])
def test_every_size_shows_the_same_portrait(size: int) -> None:
    for index in range(12):
        small, attributes = draw_portrait(index, size // 4)
        large, same = draw_portrait(index, size)
        assert small.shape == (size // 4, size // 4, 3)
        assert large.dtype == np.uint8
        assert attributes == same
        difference = np.abs(area_mean(large, size // 4) - small)
        assert difference.mean() < 1.0
        assert np.quantile(difference, 0.99) < 8


@pytest.mark.parametrize(
    ("shape", "area"),
    [
        (ellipse(0.03, 0.1, 0.5, 0.3, 0.4), np.pi * 0.5 * 0.3),
        (rounded_box(-0.51, -0.2, 0.33, 0.43, 0.0), 0.84 * 0.63),
        (stroke(0.0, 0.1, 0.5, 0.2, 0.1, 0.1), None),
    ],
)
def test_edges_are_anti_aliased(shape: Shape, area: float | None) -> None:
    canvases = []
    for size in (64, 512):
        canvas = Canvas(size)
        Frame(canvas, (0.05, -0.02), tilt=0.3, scale=1.1).fill(shape, np.ones(3, np.float32))
        canvases.append(canvas.planes[0])
    small, large = canvases
    between = (small > 0.02) & (small < 0.98)
    assert between.sum() > 40
    assert len(np.unique(small[between].round(2))) > 20
    covered = small.mean() * 4
    assert covered == pytest.approx(large.mean() * 4, rel=0.02)
    if area is not None:
        assert covered == pytest.approx(area * 1.1**2, rel=0.02)


def test_portraits_use_soft_edges_and_the_whole_canvas(
    portraits: tuple[np.ndarray, list[dict[str, str]]],
) -> None:
    pixels, _ = portraits
    assert min(len(np.unique(p.reshape(-1, 3), axis=0)) for p in pixels[:50]) > 1000
    assert pixels.std(axis=0).min() > 10


def test_every_value_occurs_about_equally_often(parameters: list[FaceParameters]) -> None:
    for name, values in ATTRIBUTES.items():
        counts = Counter(params.attributes[name] for params in parameters)
        assert set(counts) == set(values)
        expected = len(parameters) / len(values)
        statistic = sum((counts[value] - expected) ** 2 / expected for value in values)
        assert statistic < 21  # chi-square with at most 5 degrees of freedom: p = 0.001


def test_attributes_are_independent_of_one_another(parameters: list[FaceParameters]) -> None:
    for a, b in combinations(ATTRIBUTES, 2):
        counts = Counter((s.attributes[a], s.attributes[b]) for s in parameters)
        table = np.array([[counts[(x, y)] for y in ATTRIBUTES[b]] for x in ATTRIBUTES[a]])
        expected = table.sum(axis=1, keepdims=True) * table.sum(axis=0) / table.sum()
        chi_square = ((table - expected) ** 2 / expected).sum()
        cramer = np.sqrt(chi_square / table.sum() / (min(table.shape) - 1))
        assert cramer < 0.06, (a, b)


def test_faces_and_colours_vary_continuously(parameters: list[FaceParameters]) -> None:
    assert len({params.face_width for params in parameters}) == len(parameters)
    assert len({tuple(params.skin) for params in parameters}) > 0.99 * len(parameters)


def test_attributes_of_unseen_portraits_are_classified(
    portraits: tuple[np.ndarray, list[dict[str, str]]],
) -> None:
    found = accuracies(*portraits)
    assert min(found.values()) >= 0.99, found


def test_the_classifier_is_robust_to_blur_and_noise(
    portraits: tuple[np.ndarray, list[dict[str, str]]],
) -> None:
    pixels, truth = portraits
    ticks = np.arange(-4, 5)
    kernel = np.exp(-(ticks**2) / 2) / np.exp(-(ticks**2) / 2).sum()
    values = np.pad(pixels.astype(np.float32), ((0, 0), (4, 4), (4, 4), (0, 0)), mode="edge")
    values = sum(k * values[:, i : i + 64] for i, k in enumerate(kernel))
    values = sum(k * values[:, :, i : i + 64] for i, k in enumerate(kernel))
    values = values + np.random.default_rng(0).normal(0, 6, values.shape)
    found = accuracies(np.clip(values, 0, 255).astype(np.uint8), truth)
    assert min(found.values()) >= 0.95, found


def test_larger_images_are_classified() -> None:
    found = accuracies(*draw_many(300, 128))
    assert min(found.values()) >= 0.97, found


@pytest.mark.slow
def test_smaller_images_are_classified() -> None:
    found = accuracies(*draw_many(600, 32))
    assert min(found.values()) >= 0.95, found


def test_the_classification_is_independent_of_the_batch(
    portraits: tuple[np.ndarray, list[dict[str, str]]],
) -> None:
    pixels, _ = portraits
    together = classify_attributes(pixels[:300])
    assert together[130:140] == classify_attributes(pixels[130:140])
    assert classify_attributes(pixels[:0]) == []


def test_a_missing_value_shows_in_the_distance_of_its_attribute(
    portraits: tuple[np.ndarray, list[dict[str, str]]],
) -> None:
    pixels, truth = portraits
    kept = np.array([t["glasses"] != "round" for t in truth])
    distance = attribute_distance(
        attribute_histogram(classify_attributes(pixels[kept])), attribute_histogram(truth)
    )
    assert max(distance.per_attribute, key=distance.per_attribute.__getitem__) == "glasses"
    assert distance.per_attribute["glasses"] == pytest.approx(1 / 3, abs=0.05)
    assert distance.mean < 0.08


def test_distance_is_total_variation() -> None:
    first = {name: values[0] for name, values in ATTRIBUTES.items()}
    other = {**first, "light": "right", "mouth": "open"}
    histogram = attribute_histogram([first, first, first, other])
    assert histogram["light"] == {"left": 0.75, "right": 0.25}
    assert sum(histogram["skin"].values()) == pytest.approx(1)
    distance = attribute_distance(histogram, attribute_histogram([other]))
    assert distance.per_attribute["light"] == pytest.approx(0.75)
    assert distance.per_attribute["skin"] == 0
    assert distance.mean == pytest.approx(1.5 / len(ATTRIBUTES))
    assert attribute_distance(histogram, histogram).mean == 0


def test_wrong_arguments_are_refused_with_the_remedy() -> None:
    with pytest.raises(UserError, match=r"15 pixels .* size of 16"):
        draw_portrait(0, 15)
    assert draw_portrait(0, 16)[0].shape == (16, 16, 3)
    for wrong, named in (
        (np.zeros((2, 64, 64, 3), np.float32), r"not float32 \[2, 64, 64, 3\]"),
        (np.zeros((64, 64, 3), np.uint8), r"not uint8 \[64, 64, 3\]"),
        (np.zeros((2, 64, 32, 3), np.uint8), r"not uint8 \[2, 64, 32, 3\]"),
        (np.zeros((2, 8, 8, 3), np.uint8), "at least 16 pixels, not 8"),
    ):
        with pytest.raises(UserError, match=named):
            classify_attributes(wrong)
    with pytest.raises(UserError, match="at least one portrait"):
        attribute_histogram([])
    with pytest.raises(UserError, match=r"skin is 'blue'.*porcelain"):
        attribute_histogram([{name: v[0] for name, v in ATTRIBUTES.items()} | {"skin": "blue"}])
