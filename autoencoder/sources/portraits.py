"""The embedded default source: procedural portraits, drawn on access."""

from __future__ import annotations

from PIL import Image

from autoencoder.portraits import draw_portrait
from autoencoder.sources.protocol import SourceImage
from latentddm.engine.errors import UserError

DEFAULT_COUNT = 4000
DEFAULT_SIZE = 256


class PortraitSource:
    """`count` portraits of one seed at `size` pixels a side, with their attributes."""

    def __init__(self, count: int = DEFAULT_COUNT, seed: int = 0, size: int | None = None) -> None:
        self.name = f"portraits:{count}:{seed}"
        self.seed = seed
        self.size = size or DEFAULT_SIZE
        self._count = count

    def __len__(self) -> int:
        return self._count

    def key(self, index: int) -> str:
        if not 0 <= index < self._count:
            raise IndexError(f"portrait {index} of {self._count}")
        return f"portrait-{index:06d}"

    def label(self, index: int) -> int | None:
        return None

    def load(self, index: int) -> SourceImage:
        key = self.key(index)
        pixels, attributes = draw_portrait(index, self.size, self.seed)
        return SourceImage(key, Image.fromarray(pixels), None, dict(attributes))


def parse_portraits(reference: str, size: int | None) -> PortraitSource:
    """The source of `portraits`, `portraits:COUNT` or `portraits:COUNT:SEED`."""
    parts = reference.split(":")[1:]
    if len(parts) > 2 or not all(part.isdecimal() for part in parts):
        raise UserError(
            f"{reference} does not read portraits[:count[:seed]]; give, for example, "
            "portraits:6000:7."
        )
    count = int(parts[0]) if parts else DEFAULT_COUNT
    seed = int(parts[1]) if len(parts) == 2 else 0
    if count < 1:
        raise UserError(f"{reference} is a source of no portraits; give a count of 1 or more.")
    return PortraitSource(count, seed, size)
