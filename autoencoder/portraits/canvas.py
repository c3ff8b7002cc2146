"""A canvas of floating-point colours, and frames of local coordinates for painting on it.

The canvas spans [-1, 1] in both directions, y pointing down, at any size in pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from autoencoder.portraits.shapes import Array, Box, Shape

Point = tuple[float, float]


@dataclass(frozen=True)
class Gradient:
    """A linear colour gradient from `first` at the point `start` to `last` at the point `end`."""

    first: Array  # [3], 0..1
    last: Array  # [3], 0..1
    start: Point
    end: Point

    def colours(self, x: Array, y: Array) -> Array:
        """The colours [3,h,w] at the coordinates [h,w]."""
        run, rise = self.end[0] - self.start[0], self.end[1] - self.start[1]
        share = (x - self.start[0]) * run + (y - self.start[1]) * rise
        share = np.clip(share / (run * run + rise * rise), 0, 1)
        return self.first[:, None, None] + (self.last - self.first)[:, None, None] * share


Paint = Array | Gradient


class Canvas:
    """`size` x `size` pixels of RGB colour, 0..1, stored as three planes."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.planes = np.zeros((3, size, size), np.float32)

    def pixels(self, size: int) -> Array:
        """The image as uint8 [size,size,3]; `size` divides the size of the canvas."""
        cell = self.size // size
        planes = self.planes
        if cell > 1:
            rows = np.add.reduce([planes[:, first::cell] for first in range(cell)])
            planes = np.add.reduce([rows[:, :, first::cell] for first in range(cell)])
            planes /= np.float32(cell * cell)
        rounded = np.clip(planes * 255 + 0.5, 0, 255).astype(np.uint8)
        return np.ascontiguousarray(rounded.transpose(1, 2, 0))


class Frame:
    """Local coordinates on a canvas: an origin, a clockwise tilt (radians) and a scale."""

    def __init__(
        self, canvas: Canvas, origin: Point = (0.0, 0.0), tilt: float = 0.0, scale: float = 1.0
    ) -> None:
        self._canvas = canvas
        self._origin = origin
        self._turn = (math.cos(tilt) * scale, math.sin(tilt) * scale)
        self._pixel = 2 / canvas.size / scale
        centres = (np.arange(canvas.size, dtype=np.float32) + 0.5) * (2 / canvas.size) - 1
        across, down = centres[None, :] - origin[0], centres[:, None] - origin[1]
        cosine, sine = math.cos(tilt) / scale, math.sin(tilt) / scale
        # Without a tilt, x and y remain a row and a column and broadcast, which is much faster.
        self._x = across * cosine + down * sine if tilt else across * cosine
        self._y = down * cosine - across * sine if tilt else down * cosine

    def fill(self, shape: Shape, paint: Paint, opacity: float = 1.0, feather: float = 0.0) -> None:
        """Paint `shape` with an edge one pixel wide, or `feather` if that is wider."""
        window = self._window(shape.box, feather / 2 + self._pixel)
        x, y = _cut(self._x, window), _cut(self._y, window)
        if not x.size or not y.size:
            return
        softness = max(feather, self._pixel)
        coverage = shape.distance(x, y) * np.float32(-1 / softness) + np.float32(0.5)
        np.minimum(np.maximum(coverage, 0, out=coverage), 1, out=coverage)
        if feather:
            coverage = coverage * coverage * (3 - 2 * coverage)
        if opacity != 1:
            coverage *= np.float32(opacity)
        colour = paint.colours(x, y) if isinstance(paint, Gradient) else paint[:, None, None]
        target = self._canvas.planes[:, window[0], window[1]]
        target += coverage * (colour - target)

    def _window(self, box: Box, margin: float) -> tuple[slice, slice]:
        """The rows and columns of all pixels within a box in local coordinates."""
        cosine, sine = self._turn
        left, top, right, bottom = box
        x, y = (left + right) / 2, (top + bottom) / 2
        half_x, half_y = (right - left) / 2 + margin, (bottom - top) / 2 + margin
        across, down = x * cosine - y * sine, x * sine + y * cosine
        reach_x = half_x * cosine + half_y * abs(sine)
        reach_y = half_x * abs(sine) + half_y * cosine
        return (
            self._span(down + self._origin[1], reach_y),
            self._span(across + self._origin[0], reach_x),
        )

    def _span(self, centre: float, reach: float) -> slice:
        size = self._canvas.size
        first = math.floor((centre - reach + 1) / 2 * size)
        last = math.ceil((centre + reach + 1) / 2 * size)
        return slice(min(max(first, 0), size), min(max(last, 0), size))


def _cut(coordinates: Array, window: tuple[slice, slice]) -> Array:
    """The window of a plane of coordinates; a single row or column broadcasts and is kept."""
    rows, columns = (
        cut if length > 1 else slice(None)
        for cut, length in zip(window, coordinates.shape, strict=True)
    )
    return coordinates[rows, columns]
