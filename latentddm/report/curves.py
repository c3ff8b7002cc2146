"""Curves of a distance against the number of network evaluations, as SVG within the page.

The colours are the page's, so that the curves follow a light or a dark scheme.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from latentddm.report.formatting import interval, number, text

WIDTH, HEIGHT = 520, 350
LEFT, RIGHT, TOP, BOTTOM = 76, 506, 14, 298  # of the plot within the drawing
PADDING = 1.3  # by which an axis exceeds its values on both sides
MOST_TICKS = 8


@dataclass(frozen=True)
class LogAxis:
    """Maps low ... high (both above zero) to start ... stop on a logarithmic scale."""

    low: float
    high: float
    start: float
    stop: float

    def position(self, value: float) -> float:
        """Where a value lies; what is beyond the axis, or not above zero, lies at its end."""
        value = min(max(value, self.low), self.high)
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return round(self.start + share * (self.stop - self.start), 1)

    def ticks(self) -> list[float]:
        """Round values within the axis, as many as can be read."""
        lowest, highest = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        for mantissas in (range(1, 10), (1, 2, 5), (1,)):
            ticks = [m * 10.0**power for power in range(lowest, highest + 1) for m in mantissas]
            ticks = [tick for tick in ticks if self.low <= tick <= self.high]
            if len(ticks) <= MOST_TICKS:
                break
        return ticks


def curve(metric: str, name: str, methods: Sequence[dict[str, Any]], floor: float) -> str:
    """A figure of one metric for every method, both axes logarithmic.

    floor: the value that is the best to be had, a dashed line. What cannot stand on a logarithmic
    axis (zero or below, not a number) is named in the caption.
    """
    points = [
        (method["label"], result["steps"], result[metric])
        for method in methods
        for result in method["results"]
    ]
    shown = [point for point in points if _fits(point[2]["value"])]
    left_out = [f"{label} at {n}" for label, n, measured in points if not _fits(measured["value"])]
    if not _fits(floor):
        left_out.append("the floor")
    caption = f"<figcaption>{text(name)}{_note(left_out)}</figcaption>"
    if not shown:
        return f'<figure class="curve">{caption}</figure>'

    steps = sorted({n for _, n, _ in points})
    values = [measured["value"] for _, _, measured in shown]
    values += [measured["high"] for _, _, measured in shown if _fits(measured["high"])]
    values += [floor] if _fits(floor) else []
    x = LogAxis(steps[0] / PADDING, steps[-1] * PADDING, LEFT, RIGHT)
    y = LogAxis(min(values) / PADDING, max(values) * PADDING, BOTTOM, TOP)
    parts = [
        *_frame(x, y, steps),
        *(_floor(y, floor) if _fits(floor) else []),
        *(_series(place, method, metric, x, y) for place, method in enumerate(methods)),
    ]
    return (
        f'<figure class="curve">{caption}<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{text(name)} against network evaluations">{"".join(parts)}</svg></figure>'
    )


def key(place: int) -> str:
    """The sign of the method at `place` in the legend: its marker on its line."""
    return (
        f'<svg class="key method-{place}" viewBox="0 0 30 14" aria-hidden="true">'
        f'<path class="line" d="M0 7H30"/>{_marker(place, 15, 7)}</svg>'
    )


def _fits(value: float) -> bool:
    return math.isfinite(value) and value > 0


def _note(left_out: Sequence[str]) -> str:
    if not left_out:
        return ""
    return f"<small>Not above zero, hence not drawn: {text(', '.join(left_out))}.</small>"


def _frame(x: LogAxis, y: LogAxis, steps: Sequence[int]) -> list[str]:
    parts = []
    for tick in y.ticks():
        at = y.position(tick)
        parts.append(f'<path class="grid" d="M{LEFT} {at}H{RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 9}" y="{at + 5}" class="end">{_tick(tick)}</text>')
    for step in steps:
        at = x.position(step)
        parts.append(f'<path class="grid" d="M{at} {TOP}V{BOTTOM}"/>')
        parts.append(f'<text x="{at}" y="{BOTTOM + 21}" class="middle">{step}</text>')
    middle = (LEFT + RIGHT) / 2
    label = "network evaluations per image"
    parts.append(f'<text x="{middle}" y="{HEIGHT - 8}" class="middle">{label}</text>')
    return parts


def _tick(value: float) -> str:
    return number(value, digits=1).removeprefix("1 · ")


def _floor(y: LogAxis, value: float) -> list[str]:
    at = y.position(value)
    return [
        f'<path class="floor" d="M{LEFT} {at}H{RIGHT}"/>',
        f'<text x="{LEFT + 6}" y="{at - 6}">floor {number(value)}</text>',
    ]


def _series(place: int, method: dict[str, Any], metric: str, x: LogAxis, y: LogAxis) -> str:
    bars, markers, corners = [], [], []
    for result in sorted(method["results"], key=lambda result: result["steps"]):
        measured = result[metric]
        if not _fits(measured["value"]):
            continue
        across, down = x.position(result["steps"]), y.position(measured["value"])
        low, high = y.position(measured["low"]), y.position(measured["high"])
        corners.append(f"{across} {down}")
        bars.append(f'<path class="interval" d="M{across} {low}V{high}"/>')
        title = (
            f"{method['label']}, {result['steps']} evaluations: "
            f"{number(measured['value'])} ({interval(measured)})"
        )
        markers.append(f"<g>{_marker(place, across, down)}<title>{text(title)}</title></g>")
    line = f'<path class="line" d="M{" L".join(corners)}"/>' if corners else ""
    return f'<g class="method-{place}">{"".join(bars)}{line}{"".join(markers)}</g>'


def _marker(place: int, x: float, y: float) -> str:
    """A disc for the first method, a hollow square for the others: told apart without colour."""
    if place == 0:
        return f'<circle class="disc" cx="{x}" cy="{y}" r="5.5"/>'
    return f'<rect class="square" x="{x - 5:.1f}" y="{y - 5:.1f}" width="10" height="10"/>'
