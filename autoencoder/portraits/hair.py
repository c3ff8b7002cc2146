"""Five hair styles, each an outer mass with an opening for the face.

The part behind head and neck is painted before them, the part in front after the face. Coordinates
are those of the head's frame: origin in the middle of the face, chin near y = 0.46.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from autoencoder.portraits.canvas import Frame
from autoencoder.portraits.face_parameters import WHITE, FaceParameters, mix, shadow
from autoencoder.portraits.shapes import (
    Shape,
    below,
    ellipse,
    rounded_box,
    scallop,
)

_NAPE = ellipse(0.0, -0.3, 0.5, 0.33)  # the hair of a short cut ends behind the ears, in a curve


@dataclass(frozen=True)
class Hair:
    """The two parts of a style; behind: None if nothing is visible behind head and neck."""

    front: Shape
    behind: Shape | None
    shows_ears: bool


def style_hair(params: FaceParameters) -> Hair:
    """The shapes of the hair style in `params`."""
    return _STYLES[params.attributes["hair"]](params)


def paint_behind(frame: Frame, params: FaceParameters, hair: Hair) -> None:
    """The hair behind head and neck, in its own shade."""
    if hair.behind is not None:
        frame.fill(hair.behind, params.lit(shadow(params.hair, 0.5), 0.6, 0.6))


def paint_front(frame: Frame, params: FaceParameters, hair: Hair, face: Shape) -> None:
    """The hair in front, its soft shadow on the face, and a sheen on the lit side."""
    shade = face & hair.front.shifted(-0.02 * params.light, 0.05)
    frame.fill(shade, shadow(params.skin), opacity=0.5, feather=0.05)
    frame.fill(hair.front, params.lit(params.hair, 0.55))
    sheen = ellipse(0.2 * params.light, -0.42, 0.17, 0.045, 0.5 * params.light) & hair.front
    frame.fill(sheen, mix(params.hair, WHITE, 0.6), opacity=0.4, feather=0.08)


def _short(params: FaceParameters) -> Hair:
    width = params.face_width + 0.05
    mass = ellipse(-0.03 * params.yaw, -0.12, width * params.volume, 0.47 * params.volume)
    quiff = ellipse(0.1 * params.yaw + 0.04, -0.47, 0.27, 0.14 * params.volume, -0.18)
    opening = ellipse(0.08 * params.yaw, 0.18, params.face_width - 0.02, 0.46, 0.12)
    return Hair(((mass & _NAPE) | quiff) - opening, None, True)


def _bun(params: FaceParameters) -> Hair:
    width = params.face_width + 0.03
    mass = ellipse(-0.03 * params.yaw, -0.10, width * params.volume, 0.46) & _NAPE
    knot = ellipse(-0.1 * params.yaw, -0.62, 0.19 * params.volume, 0.17 * params.volume)
    opening = ellipse(0.08 * params.yaw, 0.2, params.face_width - 0.03, 0.54)
    return Hair((mass - opening) | knot, None, True)


def _bob(params: FaceParameters) -> Hair:
    width = (params.face_width + 0.11) * params.volume
    crown = ellipse(-0.03 * params.yaw, -0.09, width, 0.52 * params.volume)
    sides = rounded_box(-width - 0.03 * params.yaw, -0.15, width - 0.03 * params.yaw, 0.4, 0.13)
    opening = ellipse(0.1 * params.yaw, 0.12, params.face_width - 0.05, 0.5) & below(-0.2)
    mass = crown | sides
    return Hair(mass - (opening | _gap(params, 0.24)), mass, False)


def _long(params: FaceParameters) -> Hair:
    width = (params.face_width + 0.09) * params.volume
    crown = ellipse(-0.03 * params.yaw, -0.1, width, 0.52 * params.volume)
    wave = ellipse(0, 0.42, width + 0.06, 0.62) & below(0.0)
    opening = ellipse(0.1 * params.yaw + 0.1, 0.16, 0.4, 0.5, -0.3)
    opening = opening & ellipse(0.1 * params.yaw, 0.15, params.face_width - 0.03, 0.54)
    mass = crown | wave
    return Hair(mass - (opening | _gap(params, 0.25)), mass, False)


def _curly(params: FaceParameters) -> Hair:
    mass = scallop(-0.03 * params.yaw, -0.16, 0.5 * params.volume, 0.07, 13, params.phase)
    opening = scallop(0.1 * params.yaw, 0.12, params.face_width - 0.06, 0.04, 9, params.phase)
    opening = opening | ellipse(0.09 * params.yaw, 0.2, params.face_width - 0.03, 0.44)
    jaw = ellipse(0.0, 0.56, 0.62, 0.52)
    return Hair(mass - (opening | jaw), mass, False)


def _gap(params: FaceParameters, half: float) -> Shape:
    """The opening below the chin, for neck and clothes between the strands."""
    middle = 0.05 * params.yaw
    return rounded_box(middle - half, 0.25, middle + half, 2.0, 0.1)


_STYLES: dict[str, Callable[[FaceParameters], Hair]] = {
    "short": _short,
    "bun": _bun,
    "bob": _bob,
    "long": _long,
    "curly": _curly,
}
