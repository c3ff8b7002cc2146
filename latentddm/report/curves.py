"""Curves of a distance against the number of network evaluations, drawn with matplotlib.

    figure = distance_curves([Series("DDM", points), ...], title="Fréchet distance", floor=0.4)
    path.write_text(svg(figure))                 # a file of its own, in the colours of PALETTE
    figure.savefig(path)                         # PNG, PDF: any format of matplotlib

Equal input gives equal bytes. figures.py embeds the same drawing in the page.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from latentddm.report.formatting import number

if TYPE_CHECKING:  # matplotlib is imported when a curve is drawn, not with the package
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 520, 350  # of the drawing, in points: about pixels on the page
LEFT, BOTTOM, RIGHT, TOP = 0.145, 0.15, 0.98, 0.965  # edges of the axes, as shares of the drawing
TITLE_HEIGHT = 0.06  # share of the drawing
FONT_SIZE = 13.5
PADDING = 1.3  # factor by which an axis exceeds its values on both sides
MOST_TICKS = 8
CLOSEST_TICKS = 0.045  # least distance of two labels across, as a share of the axis
MANTISSAS: tuple[Sequence[float], ...] = (
    (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9),
    range(1, 10),
    (1, 2, 5),
    (1,),
)
PALETTE = {
    "ground": "#fdfdfc",
    "ink": "#1c1e21",
    "quiet": "#62676e",
    "line": "#e2e3e1",
    "neutral": "#8a9098",
    "first": "#0067a8",
    "second": "#b8480a",
    "third": "#2f8f5b",
    "fourth": "#9a5fc0",
    "fifth": "#c2418a",
}
"""Colours by the names of the page's CSS variables, with the values of its light scheme."""
SERIES_COLOURS = ("first", "second", "third", "fourth", "fifth")
MARKERS = "os^Dv"


@dataclass(frozen=True)
class Point:
    """A distance at one number of network evaluations, with its interval."""

    evaluations: int
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Series:
    """The points of one method, in the order of their evaluations."""

    label: str
    points: Sequence[Point]


def distance_curves(
    series: Sequence[Series], *, title: str | None = None, floor: float | None = None
) -> Figure:
    """Distances against evaluations, both axes logarithmic; bands are the intervals.

    floor: the best value to be had, a dashed line. Values, and floors, that a logarithmic axis
    cannot show (zero or below, not finite) are left out, see `drawable`; an interval that reaches
    below zero ends at the axis. ValueError if nothing remains.
    """
    import matplotlib
    from matplotlib.figure import Figure

    shown = {  # by place, which is the colour and the marker
        place: Series(each.label, points)
        for place, each in enumerate(series)
        if (points := [point for point in each.points if drawable(point.value)])
    }
    points = [point for each in shown.values() for point in each.points]
    if not points:
        raise ValueError("no point of the series is above zero and finite")
    floor = floor if floor is not None and drawable(floor) else None
    values = [each for p in points for each in (p.value, p.low, p.high) if drawable(each)]
    low, high = _padded([*values, floor] if floor is not None else values)
    with matplotlib.rc_context({"text.parse_math": False}):  # a label may hold dollar signs
        figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72), facecolor=PALETTE["ground"])
        top = TOP if title is None else TOP - TITLE_HEIGHT
        axes = figure.add_axes((LEFT, BOTTOM, RIGHT - LEFT, top - BOTTOM), facecolor="none")
        _axes(axes, sorted({p.evaluations for each in series for p in each.points}), (low, high))
        if floor is not None:
            _floor(axes, floor)
        for place, each in shown.items():
            _draw(axes, each, place, low)
        if title is not None:
            axes.set_title(title, loc="left", fontsize=FONT_SIZE, color=PALETTE["ink"])
        colours = [_colour(place) for place in shown]
        axes.legend(fontsize=FONT_SIZE, labelcolor=colours, frameon=False, loc="best")
    return figure


def drawable(value: float) -> bool:
    """Whether a value has a place on a logarithmic axis: above zero and finite."""
    return math.isfinite(value) and value > 0


def svg(figure: Figure, salt: str = "curves") -> str:
    """The figure as an SVG document; text stays text. salt: makes the ids of its elements."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": salt, "text.parse_math": False}
    ):
        empty = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=empty)
    return buffer.getvalue()


def log_ticks(low: float, high: float) -> list[float]:
    """Round values from low to high (above zero), at most MOST_TICKS within four decades."""
    lowest, highest = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for mantissas in MANTISSAS:
        ticks = [m * 10.0**power for power in range(lowest, highest + 1) for m in mantissas]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= MOST_TICKS:
            break
    return ticks


def _padded(values: Iterable[float]) -> tuple[float, float]:
    values = list(values)
    return min(values) / PADDING, max(values) * PADDING


def _axes(axes: Axes, evaluations: Sequence[int], limits: tuple[float, float]) -> None:
    """Logarithmic axes with a grid at round values across and at `evaluations` along."""
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(*_padded(evaluations))
    axes.set_ylim(*limits)
    heights = log_ticks(*limits)
    for axis, ticks, labels in (
        (axes.xaxis, evaluations, _apart(evaluations)),
        (axes.yaxis, heights, [_tick_label(tick) for tick in heights]),
    ):
        axis.set_minor_locator(NullLocator())
        axis.set_major_locator(FixedLocator(ticks))
        axis.set_major_formatter(FixedFormatter(labels))
    axes.set_xlabel("network evaluations per image", fontsize=FONT_SIZE, color=PALETTE["quiet"])
    axes.tick_params(length=0, pad=7, labelsize=FONT_SIZE, labelcolor=PALETTE["quiet"])
    axes.grid(color=PALETTE["line"], linewidth=1)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _apart(evaluations: Sequence[int]) -> list[str]:
    """Labels of the numbers of evaluations; empty where they would touch the one before."""
    low, high = _padded(evaluations)
    labels, last = [], -math.inf
    for count in evaluations:
        place = math.log(count / low) / math.log(high / low)
        labels.append(f"{count:,}" if place - last >= CLOSEST_TICKS else "")
        last = place if labels[-1] else last
    return labels


def _tick_label(value: float) -> str:
    mantissa = value / 10 ** math.floor(math.log10(value) + 1e-9)
    whole = abs(mantissa - round(mantissa)) < 1e-6
    return number(value, digits=1 if whole else 2).removeprefix("1 · ")


def _floor(axes: Axes, value: float) -> None:
    axes.axhline(value, color=PALETTE["neutral"], linewidth=1.5, dashes=(4, 3.3), clip_on=False)
    axes.annotate(
        f"floor {number(value)}",
        (0.012, value),
        xycoords=axes.get_yaxis_transform(),
        xytext=(0, 5),
        textcoords="offset points",
        fontsize=FONT_SIZE,
        color=PALETTE["quiet"],
    )


def _colour(place: int) -> str:
    return PALETTE[SERIES_COLOURS[place % len(SERIES_COLOURS)]]


def _draw(axes: Axes, series: Series, place: int, lowest: float) -> None:
    """A line with markers over the band of its intervals; a bar where a band has no width."""
    colour = _colour(place)
    across = [point.evaluations for point in series.points]
    low, high = (
        [max(each, lowest) for each in ends]
        for ends in zip(*((p.low, p.high) for p in series.points), strict=True)
    )
    axes.fill_between(across, low, high, color=colour, alpha=0.18, linewidth=0, clip_on=False)
    if len(across) == 1:
        axes.vlines(across, low, high, color=colour, linewidth=1.5, alpha=0.65, clip_on=False)
    axes.plot(
        across,
        [point.value for point in series.points],
        color=colour,
        label=series.label,
        linewidth=2.5,
        solid_joinstyle="round",
        marker=MARKERS[place % len(MARKERS)],
        markersize=9,
        markeredgewidth=2 if place else 0,
        # Filled for the first series, hollow for the others: told apart without colour.
        markerfacecolor=PALETTE["ground"] if place else colour,
        clip_on=False,
        zorder=3 - 0.1 * place,  # the first series is in front
    )
