"""HTML of a sheet of pictures; `style.css` lays it out and `viewer.js` shows one picture alone."""

from __future__ import annotations

import base64
from html import escape

from autoencoder.image_io import image_bytes
from latentddm.play.sheet import Row, Sheet

LEAST_EDGE = 256
"""Least edge of a picture on the page, in CSS pixels."""
MOST_EDGE = 384
"""Largest edge of a picture that is enlarged to fill the row, in CSS pixels."""
SMOOTH_FROM = 128
"""Edge, in pixels, from which on a picture may be enlarged with smoothing."""


def sheet_html(sheet: Sheet) -> str:
    """The rows of a sheet, below each other and scrolled together; PNG in data URLs."""
    height, width = sheet.picture_size
    edge = min(height, width)
    least = -(-LEAST_EDGE // edge) * edge if edge < LEAST_EDGE else LEAST_EDGE
    style = {
        "columns": sheet.columns,
        "count": len(sheet.rows),
        "unit": f"{edge if edge < LEAST_EDGE else 1}px",  # widths are whole multiples of it
        "least": f"{least}px",
        "most": f"{max(MOST_EDGE, least)}px",
        "ratio": f"{width} / {height}",
    }
    variables = "; ".join(f"--{name}: {value}" for name, value in style.items())
    smoothed = edge >= SMOOTH_FROM
    size = f"{width} × {height} pixels each" + ("" if smoothed else ", enlarged without smoothing")
    rows = "".join(_row_html(row) for row in sheet.rows)
    return (
        f'<div class="sheet{"" if smoothed else " pixelated"}" style="{variables}">'
        f'<div class="rows" tabindex="0" role="group" aria-label="Pictures">{rows}</div>'
        f'<p class="size">{size}. Click a picture to enlarge it; a long row scrolls sideways.</p>'
        '<dialog class="alone" aria-label="One picture"><img alt=""><p></p></dialog>'
        "</div>"
    )


def title_html(title: str, images: int) -> str:
    """The name of a run, and the images seen in its training."""
    return f"<h1>{escape(title)}</h1><p>{images:,} images seen in training</p>"


def problem_html(message: str) -> str:
    """A message in the place of the pictures."""
    return f'<p class="problem" role="alert">{escape(message)}</p>'


def waiting_html() -> str:
    """The place of the pictures before the first are drawn."""
    return '<p class="waiting">The first pictures are being drawn …</p>'


def _row_html(row: Row) -> str:
    pictures = "".join(
        _picture_html(row, index, caption) for index, caption in enumerate(row.captions)
    )
    return (
        f'<section data-row="{escape(row.name)}">'
        f"<h3>{escape(row.title)} <small>{escape(row.explanation)}</small></h3>"
        f'<div class="pictures">{pictures}</div></section>'
    )


def _picture_html(row: Row, index: int, caption: str) -> str:
    pixels = row.pixels[index]
    height, width = pixels.shape[:2]
    source = base64.b64encode(image_bytes(pixels, "png")).decode()
    name = f"{row.title}, {caption}"
    return (
        f'<figure><button type="button" aria-label="{escape(name)}, enlarge">'
        f'<img src="data:image/png;base64,{source}" width="{width}" height="{height}"'
        f' alt="{escape(name)}"></button><figcaption>{escape(caption)}</figcaption></figure>'
    )
