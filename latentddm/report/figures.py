"""Images and curves embedded in the page, which has no file beside it."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentddm.engine.errors import JobError
from latentddm.report.curves import (
    HEIGHT,
    PALETTE,
    WIDTH,
    Point,
    Series,
    distance_curves,
    drawable,
    svg,
)
from latentddm.report.formatting import text

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Album:
    """The images of one report; their names are relative to `folder`."""

    folder: Path

    def show(self, name: str, description: str) -> str:
        """An <img> with the bytes of the PNG `name` in it; JobError if it cannot be read."""
        path = self.folder / name
        try:
            data = b64encode(path.read_bytes()).decode()
        except OSError as error:
            raise JobError(
                f"The image {path} of the report cannot be read ({error.strerror or error}); "
                f"run the demo again."
            ) from error
        return f'<img alt="{text(description)}" src="data:image/png;base64,{data}">'


def curve(metric: str, name: str, methods: Sequence[dict[str, Any]], floor: float) -> str:
    """The page's <figure> of one metric for every method of the report.

    Its caption names the points that a logarithmic axis cannot show.
    """
    series = [
        Series(method["label"], [_point(result, metric) for result in method["results"]])
        for method in methods
    ]
    points = [(each.label, point) for each in series for point in each.points]
    left_out = [f"{label} at {p.evaluations}" for label, p in points if not drawable(p.value)]
    caption = f"<figcaption>{text(name)}{_note(left_out, floor)}</figcaption>"
    if len(left_out) == len(points):
        return f'<figure class="curve">{caption}</figure>'
    drawing = inline_svg(distance_curves(series, floor=floor), f"{name} by network evaluations")
    return f'<figure class="curve">{caption}{drawing}</figure>'


def inline_svg(figure: Figure, label: str) -> str:
    """The figure as an <svg> element of the page; `label` is its description for screen readers.

    Colours become the page's CSS variables, which follow its light or dark scheme, and fonts the
    page's own. Ids are unique to the label; those of groups, which matplotlib numbers from 1 in
    every figure, are left out.
    """
    drawing = svg(figure, salt=label).partition("<svg ")[2].partition(">")[2]
    drawing = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", drawing, flags=re.DOTALL)
    drawing = re.sub(r'<g id="[^"]*"', "<g", drawing)
    drawing = re.sub(r'style="[^"]*"', lambda style: _page_style(style[0]), drawing)
    drawing = re.sub(r"\s*\n\s*", " ", drawing)
    opening = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{text(label)}">'
    return opening + drawing.strip()


def _page_style(style: str) -> str:
    """A style attribute of matplotlib with the page's font and variables."""
    style = re.sub(r"font-family: [^;]*; ", "", style)
    for name, colour in PALETTE.items():
        style = style.replace(colour, f"var(--{name}, {colour})")
    return style


def _point(result: dict[str, Any], metric: str) -> Point:
    measured = result[metric]
    return Point(result["steps"], measured["value"], measured["low"], measured["high"])


def _note(left_out: Sequence[str], floor: float) -> str:
    names = [*left_out, *([] if drawable(floor) else ["the floor"])]
    if not names:
        return ""
    return f"<small>Not above zero, hence not drawn: {text(', '.join(names))}.</small>"
