"""Curves: every value at its place, with its interval, in the page and in a file of its own."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from importlib.resources import files
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.colors import to_hex

from latentddm.report.curves import (
    PALETTE,
    SERIES_COLOURS,
    Point,
    Series,
    distance_curves,
    log_ticks,
    svg,
)
from latentddm.report.figures import curve, inline_svg

STEPS = (1, 2, 4, 8, 16, 50)


def series(label: str, scale: float) -> Series:
    values = [scale / steps for steps in STEPS]
    return Series(
        label, [Point(n, v, 0.9 * v, 1.2 * v) for n, v in zip(STEPS, values, strict=True)]
    )


def methods(value: float = 1.0) -> list[dict[str, Any]]:
    """Two methods in the form of the report; the first has `value` at 50 evaluations."""
    return [
        {
            "label": label,
            "results": [
                {"steps": n, "energy": {"value": v, "low": 0.9 * v, "high": 1.1 * v}}
                for n, v in [*((n, scale / n) for n in STEPS[:-1]), (50, last)]
            ],
        }
        for label, scale, last in (("DDM", 3.0, value), ("plain", 9.0, 0.3))
    ]


def lines(figure: Any) -> dict[str, Any]:
    axes = figure.axes[0]
    return {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}


def test_values_and_intervals_are_where_they_belong() -> None:
    figure = distance_curves([series("DDM", 3), series("plain", 9)], floor=0.02)
    axes = figure.axes[0]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    drawn = lines(figure)
    for each in (series("DDM", 3), series("plain", 9)):
        np.testing.assert_allclose(
            drawn[each.label].get_xydata(), [(p.evaluations, p.value) for p in each.points]
        )
    assert drawn["DDM"].get_color() != drawn["plain"].get_color()
    assert drawn["DDM"].get_marker() != drawn["plain"].get_marker()
    band = axes.collections[1].get_paths()[0].vertices
    for point in series("plain", 9).points:
        heights = band[np.isclose(band[:, 0], point.evaluations)][:, 1]
        assert (heights.min(), heights.max()) == pytest.approx((point.low, point.high))
    low, high = axes.get_ylim()
    assert low < 0.02
    assert high > 9 * 1.2
    assert "floor 0.0200" in [text.get_text() for text in axes.texts]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["DDM", "plain"]
    shown = [label.get_text() for label in axes.get_xticklabels()]
    assert shown == [str(n) for n in STEPS]


def test_the_legend_is_in_the_colours_of_the_lines() -> None:
    figure = distance_curves([series(name, 3) for name in "abc"])
    drawn = lines(figure)
    for text in figure.axes[0].get_legend().get_texts():
        assert to_hex(text.get_color()) == drawn[text.get_text()].get_color()


def test_an_interval_that_reaches_below_zero_ends_at_the_axis() -> None:
    figure = distance_curves([Series("a", [Point(1, 1.0, -0.5, 2.0), Point(4, 2.0, 1.0, 3.0)])])
    axes = figure.axes[0]
    band = axes.collections[0].get_paths()[0].vertices
    at_one = band[np.isclose(band[:, 0], 1)][:, 1]
    assert at_one.min() == pytest.approx(axes.get_ylim()[0])
    assert axes.get_ylim()[0] == pytest.approx(1.0 / 1.3)


def test_a_series_without_a_point_changes_nothing_about_the_others() -> None:
    nothing = Series("diverged", [Point(n, math.nan, math.nan, math.nan) for n in STEPS])
    drawn = lines(distance_curves([nothing, series("DDM", 3)]))
    usual = lines(distance_curves([series("plain", 9), series("DDM", 3)]))
    assert list(drawn) == ["DDM"]
    assert drawn["DDM"].get_color() == usual["DDM"].get_color()
    np.testing.assert_allclose(drawn["DDM"].get_xydata(), usual["DDM"].get_xydata())


def test_a_single_point_still_has_its_interval() -> None:
    figure = distance_curves([Series("a", [Point(4, 2.0, 1.0, 3.0)])])
    bar = figure.axes[0].collections[-1].get_segments()[0]
    np.testing.assert_allclose(bar, [[4, 1], [4, 3]])


def test_labels_that_would_touch_are_left_out() -> None:
    points = [Point(n, 1.0, 1.0, 1.0) for n in (1, 2, 40, 41, 50)]
    labels = distance_curves([Series("a", points)]).axes[0].get_xticklabels()
    assert [label.get_text() for label in labels] == ["1", "2", "40", "", "50"]


@pytest.mark.parametrize("value", [0.0, -0.004, math.nan, math.inf])
def test_points_without_a_place_on_a_logarithmic_axis_are_named(value: float) -> None:
    drawing = curve("energy", "Energy distance", methods(value), floor=value)
    caption = re.findall(r"<small>(.*?)</small>", drawing)
    assert len(caption) == 1
    assert "DDM at 50" in caption[0]
    assert "floor" in caption[0]
    assert "plain" not in caption[0]
    assert "nan" not in drawing.lower()
    assert "inf" not in drawing.lower()
    complete = curve("energy", "Energy distance", methods(0.2), floor=0.1)
    assert "<small>" not in complete
    # A line that is shorter by one point, and no line for the floor.
    assert complete.count("<use") - drawing.count("<use") == 1
    assert "floor 0.1" in complete

    for method in (nothing := methods(value)):
        for result in method["results"]:
            result["energy"]["value"] = value
    assert "<svg" not in curve("energy", "Energy distance", nothing, floor=value)
    with pytest.raises(ValueError, match="series"):
        distance_curves([Series("a", [Point(1, value, value, value)])])


def test_equal_input_gives_equal_bytes_without_a_date() -> None:
    first, second = (svg(distance_curves([series("DDM", 3)], title="t")) for _ in range(2))
    assert first == second
    assert not re.search(r"\d{4}-\d\d-\d\d|metadata", first)
    one, other = (inline_svg(distance_curves([series("DDM", 3)]), "t") for _ in range(2))
    assert one == other


def test_a_file_of_its_own_is_wellformed_and_has_the_labels_as_text() -> None:
    label = "<b>&\"x' $a$ --> $title"
    root = ElementTree.fromstring(svg(distance_curves([series(label, 3)], title=f"title {label}")))
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert label in texts
    assert f"title {label}" in texts


def test_in_the_page_every_colour_is_a_variable_of_its_style_sheet() -> None:
    drawing = inline_svg(distance_curves([series("DDM", 3), series("plain", 9)], floor=0.1), "t")
    style = (files("latentddm.report") / "style.css").read_text(encoding="utf-8")
    light = dict(re.findall(r"--([a-z]+): (#[0-9a-f]{6});", style.partition("@media")[0]))
    used = set(re.findall(r"var\(--([a-z]+), (#[0-9a-f]{6})\)", drawing))
    assert {"first", "second", "ground", "line", "neutral", "quiet"} == {name for name, _ in used}
    assert all(light[name] == colour for name, colour in used)
    assert not re.search(r"#[0-9a-f]{6}", re.sub(r"var\([^)]*\)", "", drawing))
    assert "font-family" not in drawing
    assert len({PALETTE[name] for name in SERIES_COLOURS}) == len(SERIES_COLOURS)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.5, 100, [0.5, 1, 2, 5, 10, 20, 50, 100]),
        (2.9, 5.1, [3, 4, 5]),
        (1.05, 1.78, [1.2, 1.5]),
        (2e-5, 30, [1e-4, 1e-3, 1e-2, 0.1, 1, 10]),
    ],
)
def test_axes_have_round_values(low: float, high: float, ticks: list[float]) -> None:
    assert log_ticks(low, high) == pytest.approx(ticks)


def test_values_of_every_size_have_readable_ticks() -> None:
    for scale in (1e-6, 3e-4, 0.07, 1, 12, 3456):
        axes = distance_curves([series("a", scale)]).axes[0]
        labels = [label.get_text() for label in axes.get_yticklabels()]
        assert 2 <= len(labels) <= 8
        assert all(0 < len(label) <= 8 for label in labels), labels


def test_matplotlib_is_imported_when_a_curve_is_drawn_and_not_before() -> None:
    source = "import sys, latentddm.report.page; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", source], check=False).returncode == 0
