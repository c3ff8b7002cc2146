"""Paints one portrait, from the background to the hair, at any size."""

from __future__ import annotations

import numpy as np

from autoencoder.portraits.canvas import Canvas, Frame, Gradient
from autoencoder.portraits.face import face_shape, paint_features, paint_head
from autoencoder.portraits.face_parameters import INK, WHITE, Sitter, draw_sitter, mix, shadow
from autoencoder.portraits.hair import paint_behind, paint_front, style_hair
from autoencoder.portraits.shapes import EVERYWHERE, Shape, below, ellipse, rounded_box, wedge
from latentddm.engine.errors import UserError

SMALLEST = 16
"""Pixels; below this an eye is thinner than a pixel."""

_DETAIL = 128  # a smaller picture is painted at about this size and averaged down

_EVERYTHING = Shape(EVERYWHERE, lambda x, y: np.full(np.broadcast(x, y).shape, -1.0, np.float32))


def draw_portrait(index: int, size: int, seed: int = 0) -> tuple[np.ndarray, dict[str, str]]:
    """Portrait number `index` as uint8 RGB [size,size,3], and the value of each of ATTRIBUTES.

    It depends on (seed, index) alone: another size shows the same person, and every index exists.
    UserError if `size` is below 16.
    """
    if size < SMALLEST:
        raise UserError(
            f"A portrait cannot be {size} pixels wide; ask for a size of {SMALLEST} or more."
        )
    sitter = draw_sitter(index, seed)
    canvas = Canvas(size * max(1, round(_DETAIL / size)))
    room = Frame(canvas)
    body = Frame(canvas, (sitter.shift[0], sitter.shift[1] + 0.05), scale=1.1)
    origin = (sitter.shift[0], sitter.shift[1] + 0.01)
    head = Frame(canvas, origin, sitter.tilt, sitter.scale)
    face, hair = face_shape(sitter), style_hair(sitter)

    _paint_background(room, sitter)
    paint_behind(head, sitter, hair)
    _paint_body(body, sitter)
    paint_head(head, sitter, face, hair.shows_ears)
    paint_features(head, sitter)
    paint_front(head, sitter, hair, face)
    return canvas.pixels(size), dict(sitter.attributes)


def _paint_background(room: Frame, sitter: Sitter) -> None:
    """A wall that is brighter where the light comes from, with a pale disc behind the head."""
    bright, dark = mix(sitter.background, WHITE, 0.3), shadow(sitter.background, 0.4)
    start, end = (sitter.light * 1.0, -0.7), (-sitter.light * 1.0, 0.7)
    room.fill(_EVERYTHING, Gradient(bright, dark, start, end))
    room.fill(ellipse(0.0, -0.05, 0.84, 0.84), WHITE, opacity=0.2)


def _paint_body(body: Frame, sitter: Sitter) -> None:
    """Shoulders in their clothes and the neck."""
    skin = sitter.lit(sitter.skin, 0.5, 0.7)
    neckline = sitter.attributes["neckline"]
    neck = rounded_box(-0.15, 0.1, 0.15, 0.78, 0.1)
    shoulders = ellipse(0.0, 1.3, 0.8, 0.74) | rounded_box(-0.36, 0.58, 0.36, 1.4, 0.16)
    cloth = sitter.lit(sitter.clothes, 0.8, 0.75)
    body.fill(shoulders, cloth)
    if neckline == "crew":
        opening = ellipse(0.0, 0.57, 0.24, 0.15) & shoulders
        body.fill(ellipse(0.0, 0.57, 0.28, 0.19) & shoulders, shadow(sitter.clothes, 0.8))
        body.fill(opening | neck - below(0.6), skin)
    elif neckline == "v":
        body.fill(wedge(0.0, 0.98, 0.32, 0.5) & shoulders, shadow(sitter.clothes, 0.8))
        body.fill((wedge(0.0, 0.9, 0.26, 0.5) & shoulders) | neck - below(0.6), skin)
    else:
        body.fill(neck - below(0.6), skin)
        collar = rounded_box(-0.2, 0.45, 0.2, 0.72, 0.06)
        body.fill(collar, sitter.lit(sitter.clothes, 0.3))
        body.fill(ellipse(0.0, 0.7, 0.22, 0.05), shadow(sitter.clothes), 0.7, feather=0.06)
    chin = ellipse(0.02 * sitter.yaw, 0.28, 0.3, 0.27) & neck
    body.fill(chin, shadow(mix(sitter.skin, INK, 0.1)), opacity=0.75, feather=0.09)
