"""Rows of pictures with titles and captions: what is shown on the page, and the download of it."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass
from typing import Any

import numpy as np

from autoencoder.image_io import image_bytes, image_grid


@dataclass(frozen=True)
class Row:
    """Pictures of one kind, side by side."""

    name: str  # of its files in the download
    title: str
    explanation: str
    pixels: np.ndarray  # uint8 [N, H, W, 3]
    captions: tuple[str, ...]  # one for each picture

    def __post_init__(self) -> None:
        """ValueError unless there is one caption for each picture."""
        if len(self.captions) != len(self.pixels):
            raise ValueError(f"{len(self.pixels)} pictures have {len(self.captions)} captions.")


@dataclass(frozen=True)
class Sheet:
    """The rows of one view, all of one picture size, and the settings that made them."""

    name: str  # of its download
    rows: tuple[Row, ...]
    settings: dict[str, Any]  # plain JSON values

    @property
    def picture_size(self) -> tuple[int, int]:
        """Height and width of a picture in pixels."""
        height, width = self.rows[0].pixels.shape[1:3]
        return height, width

    @property
    def columns(self) -> int:
        """The number of pictures in the longest row."""
        return max(len(row.pixels) for row in self.rows)

    def grid(self) -> np.ndarray:
        """All rows below each other at native resolution, uint8 [., ., 3]; white where none is."""
        height, width = self.picture_size
        cells = np.full((len(self.rows), self.columns, height, width, 3), 255, dtype=np.uint8)
        for cell, row in zip(cells, self.rows, strict=True):
            cell[: len(row.pixels)] = row.pixels
        return image_grid(cells.reshape(-1, height, width, 3), self.columns)

    def archive(self) -> bytes:
        """A zip file: a PNG for each picture at native resolution, grid.png and settings.json.

        The same sheet gives the same bytes: entries carry no time of their own.
        """
        files = {"grid.png": image_bytes(self.grid(), "png")}
        for row in self.rows:
            for index, picture in enumerate(row.pixels):
                files[f"{row.name}-{index}.png"] = image_bytes(picture, "png")
        files["settings.json"] = json.dumps(self.settings, indent=2).encode()
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, data in files.items():
                archive.writestr(zipfile.ZipInfo(name), data)
        return buffer.getvalue()
