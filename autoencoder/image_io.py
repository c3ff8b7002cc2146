"""Pixels to picture files, and many pictures to one."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from latentddm.engine.atomic_io import write_bytes
from latentddm.engine.errors import UserError

PICTURE_OPTIONS: dict[str, dict[str, int]] = {
    "png": {"compress_level": 6},
    "jpeg": {"quality": 95, "subsampling": 0},
    "webp": {"lossless": True},
}
FORMAT_OF_SUFFIX = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
GAP = 2
"""Pixels between the pictures of a grid."""


def save_image(path: Path, pixels: np.ndarray) -> None:
    """Write pixels uint8 [H,W,3] to `path`, whole or not at all; the suffix gives the format."""
    format = FORMAT_OF_SUFFIX.get(Path(path).suffix.lower())
    if format is None:
        raise UserError(f"{path} does not end in one of {', '.join(FORMAT_OF_SUFFIX)}.")
    write_bytes(path, picture_bytes(pixels, format))


def picture_bytes(pixels: np.ndarray, format: str) -> bytes:
    """Pixels uint8 [H,W,3] as the bytes of a picture file; format: a key of PICTURE_OPTIONS."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=format, **PICTURE_OPTIONS[format])
    return buffer.getvalue()


def image_grid(pixels: np.ndarray, columns: int) -> np.ndarray:
    """Pictures uint8 [N,H,W,3] side by side, row by row, white between them: uint8 [.,.,3]."""
    count, height, width, _ = pixels.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    grid = np.full(
        (rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3), 255, dtype=np.uint8
    )
    for index, picture in enumerate(pixels):
        top, left = index // columns * (height + GAP), index % columns * (width + GAP)
        grid[top : top + height, left : left + width] = picture
    return grid
