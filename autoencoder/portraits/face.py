"""The head without its hair, in its own frame: ears, face, eyes, brows, nose, mouth, glasses."""

from __future__ import annotations

import numpy as np

from autoencoder.portraits.canvas import Frame
from autoencoder.portraits.face_parameters import INK, WHITE, FaceParameters, mix, shadow
from autoencoder.portraits.shapes import Shape, above, below, egg, ellipse, rounded_box, stroke

_BLUSH = np.array([0.90, 0.28, 0.30], np.float32)
_LIPS = np.array([0.70, 0.20, 0.22], np.float32)
_THROAT = np.array([0.36, 0.08, 0.12], np.float32)
_TONGUE = np.array([0.92, 0.45, 0.45], np.float32)


def face_shape(params: FaceParameters) -> Shape:
    """The outline of the face."""
    return egg(0.0, 0.0, params.face_width, 0.46, params.jaw)


def paint_head(frame: Frame, params: FaceParameters, face: Shape, shows_ears: bool) -> None:
    """Ears and face with their shading and a blush on the cheeks."""
    for side in (-1, 1) if shows_ears else ():
        x = side * (params.face_width + 0.005) - 0.07 * params.yaw
        frame.fill(ellipse(x, 0.06, 0.065, 0.095, -0.15 * side), params.lit(params.skin, 0.6))
        frame.fill(ellipse(x, 0.065, 0.032, 0.055, -0.15 * side), shadow(params.skin), opacity=0.55)
    frame.fill(face, params.lit(params.skin, 0.6, 0.7))
    lit_half = ellipse(0.13 * params.light, -0.06, params.face_width, 0.5)
    frame.fill(face - lit_half, shadow(params.skin), opacity=0.75, feather=0.09)
    for side in (-1, 1):
        cheek = ellipse(_feature_x(params, side * 0.22), 0.17, 0.075, 0.055)
        frame.fill(cheek & face, _BLUSH, opacity=0.26, feather=0.09)


def paint_features(frame: Frame, params: FaceParameters) -> None:
    """Brows, eyes, nose, mouth and glasses."""
    _paint_nose(frame, params)
    _paint_mouth(frame, params)
    lenses = _lenses(params)
    for lens in lenses:
        frame.fill(lens, WHITE, opacity=0.2)
    for side in (-1, 1):
        eyes = params.attributes["eyes"]
        closed = eyes == "closed" or (eyes == "wink" and side == 1)
        (_paint_closed_eye if closed else _paint_open_eye)(frame, params, side)
        brow = mix(shadow(params.hair, 0.6), INK, 0.25)
        x, y = _eye(params, side)
        lift = 0.145 + params.brow_lift
        frame.fill(stroke(x, y - lift, 0.09, -0.03, -0.1 * side, 0.045), brow)
    for side, lens in zip((-1, 1), lenses, strict=False):
        _paint_rim(frame, params, side, lens)


def _feature_x(params: FaceParameters, x: float) -> float:
    """The x coordinate, on the turned head, of a point at distance x from the middle line."""
    return 0.09 * params.yaw + x * (1 - 0.9 * x * params.yaw)


def _eye(params: FaceParameters, side: int) -> tuple[float, float]:
    return _feature_x(params, side * params.eye_spacing), params.eye_height


def _paint_open_eye(frame: Frame, params: FaceParameters, side: int) -> None:
    x, y = _eye(params, side)
    size = params.eye_size
    rx, ry = 0.088 * size * (1 - 0.08 * side * params.yaw), 0.068 * size
    white = ellipse(x, y, rx, ry)
    pupil_x = x + 0.018 * params.yaw
    frame.fill(white, mix(WHITE, params.skin, 0.06))
    frame.fill(ellipse(pupil_x, y, 0.054 * size, 0.058 * size) & white, params.iris)
    frame.fill(ellipse(pupil_x, y, 0.028 * size, 0.031 * size), INK)
    frame.fill(ellipse(pupil_x + 0.02 * params.light, y - 0.022, 0.015, 0.015), WHITE)
    frame.fill(stroke(x, y - ry * 0.95, rx * 1.15, -0.045, 0.0, 0.034), INK)


def _paint_closed_eye(frame: Frame, params: FaceParameters, side: int) -> None:
    x, y = _eye(params, side)
    half = 0.094 * params.eye_size
    frame.fill(stroke(x, y + 0.005, half, -0.055, 0.0, 0.046), INK)


def _paint_nose(frame: Frame, params: FaceParameters) -> None:
    x = 0.14 * params.yaw
    frame.fill(
        ellipse(x - 0.03 * params.light, 0.13, 0.05, 0.03), shadow(params.skin), 0.9, feather=0.03
    )
    frame.fill(ellipse(x + 0.012 * params.light, 0.1, 0.024, 0.05), WHITE, 0.35, feather=0.05)


def _paint_mouth(frame: Frame, params: FaceParameters) -> None:
    x, y, wide = 0.1 * params.yaw, 0.27, params.mouth_width
    lips = mix(_LIPS, shadow(params.skin), 0.2)
    mouth = params.attributes["mouth"]
    if mouth == "smile":
        bowl = ellipse(x, y - 0.035, 0.125 * wide, 0.105) & below(y - 0.03)
        frame.fill(bowl, _THROAT)
        frame.fill(bowl & above(y + 0.012), WHITE)
    elif mouth == "neutral":
        frame.fill(stroke(x, y, 0.085 * wide, 0.0, 0.0, 0.04), lips)
    else:
        hole = ellipse(x, y + 0.015, 0.058 * wide, 0.075)
        frame.fill(hole.outline(0.03) | hole, lips)
        frame.fill(hole, _THROAT)
        frame.fill(ellipse(x, y + 0.06, 0.045, 0.035) & hole, _TONGUE)


def _lenses(params: FaceParameters) -> list[Shape]:
    """Both lenses of the glasses; none without glasses."""
    kind = params.attributes["glasses"]
    if kind == "none":
        return []
    eyes = [_eye(params, side) for side in (-1, 1)]
    if kind == "round":
        return [ellipse(x, y + 0.01, 0.135, 0.135) for x, y in eyes]
    return [rounded_box(x - 0.14, y - 0.095, x + 0.14, y + 0.11, 0.025) for x, y in eyes]


def _paint_rim(frame: Frame, params: FaceParameters, side: int, lens: Shape) -> None:
    """The rim of one lens, its half of the bridge and, where visible, its temple."""
    frame.fill(lens.outline(0.036), INK)
    x, y = _eye(params, side)
    inner, outer = x - side * 0.13, x + side * 0.13
    middle = sum(_eye(params, other)[0] for other in (-1, 1)) / 2
    ear = side * params.face_width - 0.06 * params.yaw
    spans = [(inner, middle)] + ([(outer, ear)] if (ear - outer) * side > 0 else [])
    for a, b in spans:
        frame.fill(rounded_box(min(a, b), y - 0.04, max(a, b), y - 0.008, 0.01), INK)
