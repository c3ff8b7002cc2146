"""Parameters of a portrait: attributes, continuous measures and colours, drawn at random.

Together with the size in pixels they determine the image.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np

from autoencoder.portraits.attributes import ATTRIBUTES
from autoencoder.portraits.canvas import Gradient
from autoencoder.portraits.shapes import Array
from latentddm.engine.seeding import numpy_generator

_PALETTE: dict[str, dict[str, str]] = {
    "background": {
        "coral": "f0907c",
        "mustard": "f0c060",
        "mint": "98d4b4",
        "sky": "8cc2ea",
        "lilac": "bca6e4",
        "teal": "35868e",
    },
    "skin": {
        "porcelain": "fbdccb",
        "peach": "f3c29c",
        "honey": "dba26c",
        "brown": "b0774f",
        "umber": "7e5240",
    },
    "hair_colour": {
        "black": "26222e",
        "brown": "5c3526",
        "copper": "c4521e",
        "blond": "ecc468",
        "silver": "c8ccd8",
    },
    "clothes": {
        "cream": "fbf3e0",
        "red": "cc4644",
        "green": "4a8a66",
        "blue": "3c62aa",
        "charcoal": "3e4050",
    },
}
_DRAWS = 64  # random numbers reserved per portrait; more than are used
_IRISES = ("4a2c1e", "3a6ea8", "4c8058", "5c6470")
WHITE = np.array([1.0, 0.99, 0.97], np.float32)
INK = np.array([0.13, 0.11, 0.16], np.float32)


@dataclass(frozen=True)
class FaceParameters:
    """The random quantities of one portrait. Lengths are in canvas units."""

    attributes: dict[str, str]
    background: Array
    skin: Array
    hair: Array
    clothes: Array
    iris: Array
    light: int  # -1 the light comes from the left, +1 from the right
    yaw: float  # direction of the head: about -1 left, 0 front, 1 right
    tilt: float  # clockwise, radians
    scale: float
    shift: tuple[float, float]
    face_width: float
    jaw: float
    eye_spacing: float
    eye_size: float
    eye_height: float
    brow_lift: float
    mouth_width: float
    volume: float  # of the hair
    phase: float  # of the curls

    def lit(self, colour: Array, reach: float, strength: float = 1.0) -> Gradient:
        """A gradient of `colour`, lighter towards the light, darker away from it, over +-reach."""
        bright = mix(colour, WHITE, 0.16 * strength)
        start, end = (self.light * reach, -reach / 2), (-self.light * reach, reach / 2)
        return Gradient(bright, shadow(colour, 0.55 * strength), start, end)


def mix(a: Array, b: Array, share: float) -> Array:
    """The colour at `share` of the way from a to b."""
    return a + (b - a) * np.float32(share)


def shadow(colour: Array, strength: float = 1.0) -> Array:
    """`colour` in shadow: darker and slightly redder."""
    return mix(colour, colour * np.array([0.68, 0.57, 0.62], np.float32), strength)


def draw_parameters(index: int, seed: int) -> FaceParameters:
    """The parameters of portrait (seed, index); deterministic."""
    uniform = iter(numpy_generator(seed, "portrait", index).random(_DRAWS).tolist())

    def choose(values: tuple[str, ...]) -> str:
        return values[int(next(uniform) * len(values))]

    def around(centre: float, spread: float) -> float:
        return centre + spread * (2 * next(uniform) - 1)

    def jittered(code: str) -> Array:
        return _moved(code, around(0.0, 0.012), around(1.0, 0.10), around(1.0, 0.05))

    def colour(name: str) -> Array:
        return jittered(_PALETTE[name][attributes[name]])

    attributes = {name: choose(values) for name, values in ATTRIBUTES.items()}
    return FaceParameters(
        attributes=attributes,
        background=colour("background"),
        skin=colour("skin"),
        hair=colour("hair_colour"),
        clothes=colour("clothes"),
        iris=jittered(choose(_IRISES)),
        light={"left": -1, "right": 1}[attributes["light"]],
        yaw=around({"left": -1.0, "front": 0.0, "right": 1.0}[attributes["pose"]], 0.2),
        tilt=around(0.0, 0.07),
        scale=around(1.2, 0.05),
        shift=(around(0.0, 0.05), around(0.0, 0.035)),
        face_width=around(0.365, 0.022),
        jaw=around(0.15, 0.07),
        eye_spacing=around(0.165, 0.012),
        eye_size=around(1.1, 0.08),
        eye_height=around(0.02, 0.02),
        brow_lift=around(0.0, 0.02),
        mouth_width=around(1.0, 0.14),
        volume=around(1.0, 0.04),
        phase=around(0.0, 1.5),
    )


def _moved(code: str, turn: float, richer: float, brighter: float) -> Array:
    """A palette colour with its hue shifted and its saturation and value multiplied."""
    red, green, blue = (int(code[i : i + 2], 16) / 255 for i in (0, 2, 4))
    hue, saturation, value = colorsys.rgb_to_hsv(red, green, blue)
    moved = colorsys.hsv_to_rgb(
        (hue + turn) % 1, min(saturation * richer, 1), min(value * brighter, 1)
    )
    return np.array(moved, np.float32)
