"""Five hair styles. Each is an outer mass with an opening through which the face looks.

The part behind head and neck is painted before them, the part in front after the face. All in the
frame of the head: origin in the middle of the face, chin near y = 0.46.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from autoencoder.portraits.canvas import Frame
from autoencoder.portraits.face_parameters import WHITE, Sitter, mix, shadow
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
    """The two parts of a style; `behind` is None where nothing shows behind head and neck."""

    front: Shape
    behind: Shape | None
    shows_ears: bool


def style_hair(sitter: Sitter) -> Hair:
    """The shapes of this sitter's hair."""
    return _STYLES[sitter.attributes["hair"]](sitter)


def paint_behind(frame: Frame, sitter: Sitter, hair: Hair) -> None:
    """The hair behind head and neck, in its own shade."""
    if hair.behind is not None:
        frame.fill(hair.behind, sitter.lit(shadow(sitter.hair, 0.5), 0.6, 0.6))


def paint_front(frame: Frame, sitter: Sitter, hair: Hair, face: Shape) -> None:
    """The hair in front, its soft shadow on the face and a sheen on the side of the light."""
    shade = face & hair.front.shifted(-0.02 * sitter.light, 0.05)
    frame.fill(shade, shadow(sitter.skin), opacity=0.5, feather=0.05)
    frame.fill(hair.front, sitter.lit(sitter.hair, 0.55))
    sheen = ellipse(0.2 * sitter.light, -0.42, 0.17, 0.045, 0.5 * sitter.light) & hair.front
    frame.fill(sheen, mix(sitter.hair, WHITE, 0.6), opacity=0.4, feather=0.08)


def _short(sitter: Sitter) -> Hair:
    width = sitter.face_width + 0.05
    mass = ellipse(-0.03 * sitter.yaw, -0.12, width * sitter.volume, 0.47 * sitter.volume)
    quiff = ellipse(0.1 * sitter.yaw + 0.04, -0.47, 0.27, 0.14 * sitter.volume, -0.18)
    opening = ellipse(0.08 * sitter.yaw, 0.18, sitter.face_width - 0.02, 0.46, 0.12)
    return Hair(((mass & _NAPE) | quiff) - opening, None, True)


def _bun(sitter: Sitter) -> Hair:
    width = sitter.face_width + 0.03
    mass = ellipse(-0.03 * sitter.yaw, -0.10, width * sitter.volume, 0.46) & _NAPE
    knot = ellipse(-0.1 * sitter.yaw, -0.62, 0.19 * sitter.volume, 0.17 * sitter.volume)
    opening = ellipse(0.08 * sitter.yaw, 0.2, sitter.face_width - 0.03, 0.54)
    return Hair((mass - opening) | knot, None, True)


def _bob(sitter: Sitter) -> Hair:
    width = (sitter.face_width + 0.11) * sitter.volume
    crown = ellipse(-0.03 * sitter.yaw, -0.09, width, 0.52 * sitter.volume)
    sides = rounded_box(-width - 0.03 * sitter.yaw, -0.15, width - 0.03 * sitter.yaw, 0.4, 0.13)
    opening = ellipse(0.1 * sitter.yaw, 0.12, sitter.face_width - 0.05, 0.5) & below(-0.2)
    mass = crown | sides
    return Hair(mass - (opening | _gap(sitter, 0.24)), mass, False)


def _long(sitter: Sitter) -> Hair:
    width = (sitter.face_width + 0.09) * sitter.volume
    crown = ellipse(-0.03 * sitter.yaw, -0.1, width, 0.52 * sitter.volume)
    wave = ellipse(0, 0.42, width + 0.06, 0.62) & below(0.0)
    opening = ellipse(0.1 * sitter.yaw + 0.1, 0.16, 0.4, 0.5, -0.3)
    opening = opening & ellipse(0.1 * sitter.yaw, 0.15, sitter.face_width - 0.03, 0.54)
    mass = crown | wave
    return Hair(mass - (opening | _gap(sitter, 0.25)), mass, False)


def _curly(sitter: Sitter) -> Hair:
    mass = scallop(-0.03 * sitter.yaw, -0.16, 0.5 * sitter.volume, 0.07, 13, sitter.phase)
    opening = scallop(0.1 * sitter.yaw, 0.12, sitter.face_width - 0.06, 0.04, 9, sitter.phase)
    opening = opening | ellipse(0.09 * sitter.yaw, 0.2, sitter.face_width - 0.03, 0.44)
    jaw = ellipse(0.0, 0.56, 0.62, 0.52)
    return Hair(mass - (opening | jaw), mass, False)


def _gap(sitter: Sitter, half: float) -> Shape:
    """The opening below the chin, where neck and clothes show between the strands."""
    middle = 0.05 * sitter.yaw
    return rounded_box(middle - half, 0.25, middle + half, 2.0, 0.1)


_STYLES: dict[str, Callable[[Sitter], Hair]] = {
    "short": _short,
    "bun": _bun,
    "bob": _bob,
    "long": _long,
    "curly": _curly,
}
