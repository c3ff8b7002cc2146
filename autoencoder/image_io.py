"""Pixels to image files, and several images to one grid."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from latentddm.engine.atomic_io import write_bytes
from latentddm.engine.errors import UserError

FORMAT_OPTIONS: dict[str, dict[str, int]] = {
    "png": {"compress_level": 6},
    "jpeg": {"quality": 95, "subsampling": 0},
    "webp": {"lossless": True},
}
FORMAT_OF_SUFFIX = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
GAP = 2
"""Pixels between the images of a grid."""


def save_image(path: Path, pixels: np.ndarray) -> None:
    """Write pixels uint8 [H,W,3] to `path` atomically; the suffix determines the format."""
    format = FORMAT_OF_SUFFIX.get(Path(path).suffix.lower())
    if format is None:
        suffixes = ", ".join(FORMAT_OF_SUFFIX)
        raise UserError(f"{path} has no known image suffix; use one of {suffixes}.")
    write_bytes(path, image_bytes(pixels, format))


def image_bytes(pixels: np.ndarray, format: str) -> bytes:
    """The bytes of an image file of pixels uint8 [H,W,3]; format: a key of FORMAT_OPTIONS."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=format, **FORMAT_OPTIONS[format])
    return buffer.getvalue()


def image_grid(pixels: np.ndarray, columns: int) -> np.ndarray:
    """Images uint8 [N,H,W,3], row by row, separated by white lines: one image uint8 [.,.,3]."""
    count, height, width, _ = pixels.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    grid = np.full(
        (rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3), 255, dtype=np.uint8
    )
    for index, image in enumerate(pixels):
        top, left = index // columns * (height + GAP), index % columns * (width + GAP)
        grid[top : top + height, left : left + width] = image
    return grid
