"""Plane shapes as signed distances: negative inside, positive outside, zero on the edge.

A shape is a function of coordinates, so a portrait can be rasterised at any size. Distances are
exact to first order near the edge, which is sufficient for anti-aliasing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Array = np.ndarray
Box = tuple[float, float, float, float]  # left, top, right, bottom; y points down
EVERYWHERE: Box = (-9.0, -9.0, 9.0, 9.0)
_TINY = np.float32(1e-6)  # keeps the centre of an ellipse finite


@dataclass(frozen=True)
class Shape:
    """A region of the plane: `distance(x, y)` and its bounding `box`.

    `a | b` is the union, `a & b` the intersection, `a - b` the part of a outside b.
    """

    box: Box
    distance: Callable[[Array, Array], Array]

    def __or__(self, other: Shape) -> Shape:
        a, b = self.box, other.box
        hull = (min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3]))
        return Shape(hull, lambda x, y: np.minimum(self.distance(x, y), other.distance(x, y)))

    def __and__(self, other: Shape) -> Shape:
        a, b = self.box, other.box
        common = (max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))
        return Shape(common, lambda x, y: np.maximum(self.distance(x, y), other.distance(x, y)))

    def __sub__(self, other: Shape) -> Shape:
        return Shape(self.box, lambda x, y: np.maximum(self.distance(x, y), -other.distance(x, y)))

    def shifted(self, right: float, down: float) -> Shape:
        """The same region, moved."""
        left, top, far, bottom = self.box
        moved = (left + right, top + down, far + right, bottom + down)
        return Shape(moved, lambda x, y: self.distance(x - right, y - down))

    def outline(self, width: float) -> Shape:
        """The band of `width` that follows the edge."""
        half = width / 2
        left, top, right, bottom = self.box
        wider = (left - half, top - half, right + half, bottom + half)
        return Shape(wider, lambda x, y: np.abs(self.distance(x, y)) - half)


def ellipse(x0: float, y0: float, rx: float, ry: float, angle: float = 0.0) -> Shape:
    """An ellipse around (x0, y0), turned clockwise by `angle` radians."""
    cosine, sine = math.cos(angle), math.sin(angle)
    reach_x, reach_y = math.hypot(rx * cosine, ry * sine), math.hypot(rx * sine, ry * cosine)

    def distance(x: Array, y: Array) -> Array:
        x, y = x - x0, y - y0
        if angle:
            x, y = x * cosine + y * sine, y * cosine - x * sine
        return _level_distance(x / rx, y / ry, rx, ry)

    return Shape((x0 - reach_x, y0 - reach_y, x0 + reach_x, y0 + reach_y), distance)


def egg(x0: float, y0: float, rx: float, ry: float, taper: float) -> Shape:
    """An ellipse with its lower half narrowed, and its upper half widened, by the share `taper`."""

    def distance(x: Array, y: Array) -> Array:
        v = (y - y0) / ry
        width = rx * (1 - taper * v)
        return _level_distance((x - x0) / width, v, rx, ry)

    wide = rx * (1 + taper)
    return Shape((x0 - wide, y0 - ry, x0 + wide, y0 + ry), distance)


def _level_distance(u: Array, v: Array, rx: float, ry: float) -> Array:
    """The distance to the curve u^2 + v^2 = 1 to first order: its level over its slope."""
    u2, v2 = u * u, v * v
    slope = np.sqrt(u2 * (4 / rx**2) + v2 * (4 / ry**2) + _TINY)
    return (u2 + v2 - 1) / slope


def rounded_box(left: float, top: float, right: float, bottom: float, radius: float) -> Shape:
    """A rectangle with rounded corners."""
    x0, y0 = (left + right) / 2, (top + bottom) / 2
    half_x, half_y = (right - left) / 2 - radius, (bottom - top) / 2 - radius

    def distance(x: Array, y: Array) -> Array:
        over_x, over_y = np.abs(x - x0) - half_x, np.abs(y - y0) - half_y
        outside = np.sqrt(np.maximum(over_x, 0) ** 2 + np.maximum(over_y, 0) ** 2)
        return outside + np.minimum(np.maximum(over_x, over_y), 0) - radius

    return Shape((left, top, right, bottom), distance)


def scallop(x0: float, y0: float, radius: float, depth: float, count: int, phase: float) -> Shape:
    """A disc with an edge of `count` round bumps of height `depth`: a curly outline."""

    def distance(x: Array, y: Array) -> Array:
        x, y = x - x0, y - y0
        bumps = np.abs(np.sin(np.arctan2(y, x) * (count / 2) + phase))
        return np.sqrt(x * x + y * y) - radius - depth * bumps

    reach = radius + depth
    return Shape((x0 - reach, y0 - reach, x0 + reach, y0 + reach), distance)


def stroke(x0: float, y0: float, half: float, bend: float, slope: float, width: float) -> Shape:
    """A brush stroke of length 2 * `half` through (x0, y0), tapered towards both ends.

    bend: height of the ends above the middle (negative: below). slope: rise to the right.
    """

    def distance(x: Array, y: Array) -> Array:
        u = (x - x0) / half
        middle = y0 - bend * u * u - slope * (x - x0)
        steepness = np.sqrt(1 + (2 * bend * u / half + slope) ** 2)
        thickness = (width / 2) * (1 - 0.45 * np.minimum(u * u, 1))
        across = np.abs(y - middle) / steepness - thickness
        return np.maximum(across, (np.abs(u) - 1) * half)

    reach = abs(bend) + abs(slope) * half + width / 2
    return Shape((x0 - half, y0 - reach, x0 + half, y0 + reach), distance)


def wedge(x0: float, y0: float, half: float, top: float) -> Shape:
    """A triangle with its lowest corner at (x0, y0) and width 2 * `half` at height `top`."""
    run, rise = half, y0 - top
    length = math.hypot(run, rise)

    def distance(x: Array, y: Array) -> Array:
        return (np.abs(x - x0) * rise + (y - y0) * run) / length

    return Shape((x0 - half, top, x0 + half, y0), distance)


def above(level: float) -> Shape:
    """The half plane above the height `level`."""
    return Shape((EVERYWHERE[0], EVERYWHERE[1], EVERYWHERE[2], level), lambda x, y: y - level)


def below(level: float) -> Shape:
    """The half plane below the height `level`."""
    return Shape((EVERYWHERE[0], level, EVERYWHERE[2], EVERYWHERE[3]), lambda x, y: level - y)
