"""Drawing of one portrait, from the background to the hair, at any size."""

from __future__ import annotations

import numpy as np

from autoencoder.portraits.canvas import Canvas, Frame, Gradient
from autoencoder.portraits.face import face_shape, paint_features, paint_head
from autoencoder.portraits.face_parameters import (
    INK,
    WHITE,
    FaceParameters,
    draw_parameters,
    mix,
    shadow,
)
from autoencoder.portraits.hair import paint_behind, paint_front, style_hair
from autoencoder.portraits.shapes import EVERYWHERE, Shape, below, ellipse, rounded_box, wedge
from latentddm.engine.errors import UserError

SMALLEST = 16
"""Pixels a side; below this an eye is thinner than a pixel."""

_DETAIL = 128  # smaller portraits are painted at about this size and averaged down

_EVERYTHING = Shape(EVERYWHERE, lambda x, y: np.full(np.broadcast(x, y).shape, -1.0, np.float32))


def draw_portrait(index: int, size: int, seed: int = 0) -> tuple[np.ndarray, dict[str, str]]:
    """Portrait number `index` as uint8 RGB [size,size,3], and the value of each of ATTRIBUTES.

    A function of (seed, index) for any index >= 0; another size shows the same face. UserError
    for a size below 16.
    """
    if size < SMALLEST:
        raise UserError(
            f"A portrait of {size} pixels is too small; give a size of {SMALLEST} or more."
        )
    params = draw_parameters(index, seed)
    canvas = Canvas(size * max(1, round(_DETAIL / size)))
    room = Frame(canvas)
    body = Frame(canvas, (params.shift[0], params.shift[1] + 0.05), scale=1.1)
    origin = (params.shift[0], params.shift[1] + 0.01)
    head = Frame(canvas, origin, params.tilt, params.scale)
    face, hair = face_shape(params), style_hair(params)

    _paint_background(room, params)
    paint_behind(head, params, hair)
    _paint_body(body, params)
    paint_head(head, params, face, hair.shows_ears)
    paint_features(head, params)
    paint_front(head, params, hair, face)
    return canvas.pixels(size), dict(params.attributes)


def _paint_background(room: Frame, params: FaceParameters) -> None:
    """A wall, brighter towards the light, with a pale disc behind the head."""
    bright, dark = mix(params.background, WHITE, 0.3), shadow(params.background, 0.4)
    start, end = (params.light * 1.0, -0.7), (-params.light * 1.0, 0.7)
    room.fill(_EVERYTHING, Gradient(bright, dark, start, end))
    room.fill(ellipse(0.0, -0.05, 0.84, 0.84), WHITE, opacity=0.2)


def _paint_body(body: Frame, params: FaceParameters) -> None:
    """Clothed shoulders and the neck."""
    skin = params.lit(params.skin, 0.5, 0.7)
    neckline = params.attributes["neckline"]
    neck = rounded_box(-0.15, 0.1, 0.15, 0.78, 0.1)
    shoulders = ellipse(0.0, 1.3, 0.8, 0.74) | rounded_box(-0.36, 0.58, 0.36, 1.4, 0.16)
    cloth = params.lit(params.clothes, 0.8, 0.75)
    body.fill(shoulders, cloth)
    if neckline == "crew":
        opening = ellipse(0.0, 0.57, 0.24, 0.15) & shoulders
        body.fill(ellipse(0.0, 0.57, 0.28, 0.19) & shoulders, shadow(params.clothes, 0.8))
        body.fill(opening | neck - below(0.6), skin)
    elif neckline == "v":
        body.fill(wedge(0.0, 0.98, 0.32, 0.5) & shoulders, shadow(params.clothes, 0.8))
        body.fill((wedge(0.0, 0.9, 0.26, 0.5) & shoulders) | neck - below(0.6), skin)
    else:
        body.fill(neck - below(0.6), skin)
        collar = rounded_box(-0.2, 0.45, 0.2, 0.72, 0.06)
        body.fill(collar, params.lit(params.clothes, 0.3))
        body.fill(ellipse(0.0, 0.7, 0.22, 0.05), shadow(params.clothes), 0.7, feather=0.06)
    chin = ellipse(0.02 * params.yaw, 0.28, 0.3, 0.27) & neck
    body.fill(chin, shadow(mix(params.skin, INK, 0.1)), opacity=0.75, feather=0.09)
