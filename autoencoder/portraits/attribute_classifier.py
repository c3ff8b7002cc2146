"""Classification of the attributes of portraits from pixels.

A linear discriminant per attribute on region statistics: the logarithm of the mean colour of every
cell (in which light and shade are additive), and the strength of brightness gradients in every
cell. It is fitted on portraits of its own seed, half of them blurred and noisy, for robustness on
reconstructed and generated images.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from autoencoder.portraits.attributes import ATTRIBUTES
from autoencoder.portraits.drawing import SMALLEST, draw_portrait
from autoencoder.portraits.shapes import Array
from latentddm.engine.errors import UserError
from latentddm.engine.seeding import numpy_generator

_SIDE = 64  # images are resampled to this size
_EXAMPLES = 2500
_SEED = 1 << 40  # far from usual seeds, so that no classified portrait is a training example
_RIDGE = 0.015  # regularisation, as a share of a feature's variance
_CHUNK_PIXELS = 1 << 19  # processed at once: large enough for numpy, small enough for the cache


@dataclass(frozen=True)
class _Discriminant:
    """Class means of one attribute's scores, and the inverse covariance around them."""

    scores: slice
    means: Array  # [classes, scores]
    precision: Array  # [scores, scores]

    def classify(self, scores: Array) -> Array:
        """The class with the nearest mean in Mahalanobis distance, [B]."""
        away = scores[:, None, self.scores] - self.means
        return np.einsum("bki,ij,bkj->bk", away, self.precision, away).argmin(axis=1)


@dataclass(frozen=True)
class _Classifier:
    """Features -> standardised features -> scores -> attributes."""

    centre: Array
    spread: Array
    weights: Array  # [features, scores]
    discriminants: dict[str, _Discriminant]

    def classify(self, pixels: Array) -> list[dict[str, str]]:
        scores = ((_features(pixels) - self.centre) / self.spread) @ self.weights
        columns = [
            [ATTRIBUTES[name][choice] for choice in discriminant.classify(scores)]
            for name, discriminant in self.discriminants.items()
        ]
        return [
            dict(zip(self.discriminants, row, strict=True)) for row in zip(*columns, strict=True)
        ]


def classify_attributes(pixels: np.ndarray) -> list[dict[str, str]]:
    """The most likely value of each of ATTRIBUTES in each image, uint8 RGB [B,size,size,3].

    Images above 64 pixels are resampled to 64. The first call for a size draws portraits and fits
    the classifier, which takes seconds; it is cached. Images other than portraits get values too.
    UserError for pixels of another shape or type.
    """
    shape = pixels.shape
    if pixels.dtype != np.uint8 or len(shape) != 4 or shape[1] != shape[2] or shape[3] != 3:
        raise UserError(
            f"Attributes are classified from uint8 pixels [B,size,size,3], not {pixels.dtype} "
            f"{list(shape)}; convert the pixels first."
        )
    if shape[1] < SMALLEST:
        raise UserError(
            f"Attributes need images of at least {SMALLEST} pixels, not {shape[1]}; give larger "
            "ones."
        )
    if not len(pixels):
        return []
    return _fitted_classifier(min(shape[1], _SIDE)).classify(pixels)


@cache
def _fitted_classifier(size: int) -> _Classifier:
    """The classifier for images of `size` pixels: discriminant analysis by ridge regression.

    Regression on class indicators yields the discriminant subspace; the nearest mean within it is
    the decision (optimal scoring), without the masking of plain regression.
    """
    drawn = [draw_portrait(index, size, _SEED) for index in range(_EXAMPLES)]
    pixels = np.stack([image for image, _ in drawn])
    features = np.concatenate([_features(pixels), _features(_degraded(pixels))])
    centre, spread = features.mean(axis=0), features.std(axis=0) + np.float32(0.01)
    features = (features - centre) / spread
    classes = {
        name: np.tile([values.index(attributes[name]) for _, attributes in drawn], 2)
        for name, values in ATTRIBUTES.items()
    }
    # The last indicator of an attribute is one minus the sum of the others, hence redundant.
    indicators = [np.eye(len(ATTRIBUTES[name]))[of][:, :-1] for name, of in classes.items()]
    targets = np.concatenate(indicators, axis=1)
    targets = (targets - targets.mean(axis=0)).astype(np.float32)
    gram = (features.T @ features).astype(np.float64)
    gram[np.diag_indices_from(gram)] += _RIDGE * len(features)
    weights = np.linalg.solve(gram, (features.T @ targets).astype(np.float64)).astype(np.float32)
    scores = features @ weights
    discriminants, first = {}, 0
    for name, of in classes.items():
        columns = slice(first, first + len(ATTRIBUTES[name]) - 1)
        discriminants[name] = _fit_discriminant(scores, columns, of)
        first = columns.stop
    return _Classifier(centre, spread, weights, discriminants)


def _fit_discriminant(scores: Array, columns: slice, of: Array) -> _Discriminant:
    own = scores[:, columns].astype(np.float64)
    means = np.stack([own[of == choice].mean(axis=0) for choice in range(of.max() + 1)])
    away = own - means[of]
    return _Discriminant(columns, means, np.linalg.inv(away.T @ away / len(away)))


def _degraded(pixels: Array) -> Array:
    """The same images, blurred by 0.7 to 1.2 pixels and noisy."""
    # The label of the seed is fixed: recorded attribute distances depend on it.
    generator = numpy_generator(_SEED, "reader", pixels.shape[1])
    halves = []
    for half, passes, noise in zip(np.array_split(pixels, 2), (1, 3), (8.0, 4.0), strict=True):
        values = half.astype(np.float32)
        for _ in range(passes):
            values = _blurred(values)
        values += generator.standard_normal(values.shape, dtype=np.float32) * np.float32(noise)
        halves.append(np.clip(values, 0, 255).astype(np.uint8))
    return np.concatenate(halves)


def _blurred(values: Array) -> Array:
    """One pass of the binomial filter 1 2 1 along rows and columns of [B,H,W,...]: sigma 0.7."""
    for axis in (1, 2):
        first, last = values.take([0], axis), values.take([-1], axis)
        long = np.concatenate([first, values, last], axis)
        before, after = np.split(long, [-2], axis)[0], np.split(long, [2], axis)[1]
        values = (before + after) * np.float32(0.25) + values * np.float32(0.5)
    return values


def _features(pixels: Array) -> Array:
    """Region statistics [B,features] of images uint8 [B,size,size,3] of any size."""
    chunk = max(1, _CHUNK_PIXELS // pixels.shape[1] ** 2)
    chunks = [pixels[start : start + chunk] for start in range(0, len(pixels), chunk)]
    return np.concatenate([_chunk_features(part) for part in chunks])


def _chunk_features(pixels: Array) -> Array:
    values = _resampled(pixels.astype(np.float32) * np.float32(1 / 255))
    found = [np.log(_halved(_halved(values)) + np.float32(0.1))]
    grey = values @ np.full(3, 1 / 3, np.float32)
    brightness = _blurred(np.log(grey + np.float32(0.1)))
    right, down = np.zeros_like(brightness), np.zeros_like(brightness)
    right[:, :, 1:-1] = brightness[:, :, 2:] - brightness[:, :, :-2]
    down[:, 1:-1] = brightness[:, 2:] - brightness[:, :-2]
    for slope in (right, -right, down, -down):
        fine = _halved(np.maximum(slope, 0))
        coarse = _halved(fine)[:, 3:, 2:14]
        eyes = fine[:, 11:23, 7:25]  # the region of eyes and glasses, at twice the resolution
        found += [np.sqrt(cells + np.float32(0.001)) for cells in (coarse, eyes)]
    return np.concatenate([cells.reshape(len(pixels), -1) for cells in found], axis=1)


def _halved(values: Array) -> Array:
    """Means over cells of 2 x 2 pixels of [B,H,W,...]."""
    rows = values[:, ::2] + values[:, 1::2]
    return (rows[:, :, ::2] + rows[:, :, 1::2]) * np.float32(0.25)


def _resampled(values: Array) -> Array:
    """[B,size,size,3] -> [B,64,64,3]; every new pixel is the mean of its area."""
    size = values.shape[1]
    if size == _SIDE:
        return values
    edges = np.arange(_SIDE + 1) * (size / _SIDE)
    old = np.arange(size)
    overlap = np.minimum(edges[1:, None], old + 1) - np.maximum(edges[:-1, None], old)
    weights = (np.maximum(overlap, 0) * (_SIDE / size)).astype(np.float32)
    rows = weights @ values.reshape(len(values), size, size * 3)
    rows = rows.reshape(len(values), _SIDE, size, 3)
    return np.matmul(weights, rows)
