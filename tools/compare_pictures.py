"""The pictures of tools/compare.py: curves over evaluations, trends over training, grids."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
from compare_results import Finding
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, NullLocator
from PIL import Image

from autoencoder.image_io import save_image
from latentddm.engine.atomic_io import atomic_path, make_folder

MARKERS = "osD^vPX*"


def draw_curves(path: Path, best: Sequence[Finding], metric: str) -> None:
    """The best distance of each method against the number of evaluations."""
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axis = figure.subplots()
    for place, (method, group) in enumerate(groupby(best, key=lambda f: f.method)):
        line = list(group)
        _plot(axis, place, [f.evaluations for f in line], line, metric, str(method))
    ticks = sorted({finding.evaluations for finding in best})
    _finish(figure, axis, ("network evaluations", ticks), metric, path)


def draw_trends(path: Path, best: Sequence[Finding], metric: str) -> bool:
    """The best distance against images seen, where a run is given at several checkpoints."""
    lines: dict[tuple[str, int], list[Finding]] = {}
    for finding in best:
        lines.setdefault((finding.method.series, finding.evaluations), []).append(finding)
    lines = {key: line for key, line in lines.items() if len(line) > 1}
    if not lines:
        return False
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axis = figure.subplots()
    for place, ((name, evaluations), line) in enumerate(lines.items()):
        line = sorted(line, key=lambda finding: finding.method.images)
        label = f"{name}, {evaluations} evaluations"
        _plot(axis, place, [f.method.images for f in line], line, metric, label)
    ticks = sorted({finding.method.images for line in lines.values() for finding in line})
    _finish(figure, axis, ("images seen", ticks), metric, path)
    return True


def draw_grids(folder: Path, best: Sequence[Finding], cells: Path) -> None:
    """For each method one picture: a row of images for each number of evaluations."""
    make_folder(folder)
    for place, (_, group) in enumerate(groupby(best, key=lambda f: f.method)):
        line = list(group)
        rows = [np.asarray(Image.open(cells / finding.picture)) for finding in line]
        first = line[0].method
        name = "".join(c if c.isalnum() else "-" for c in f"{first.series} {first.images}")
        save_image(folder / f"{place:02d}-{name}.png", np.concatenate(rows))


def _plot(
    axis: Axes, place: int, across: Sequence[int], line: Sequence[Finding], metric: str, label: str
) -> None:
    values = [finding.values[metric] for finding in line]
    marker, colour = MARKERS[place % len(MARKERS)], f"C{place % 10}"
    axis.plot(across, values, marker=marker, color=colour, label=label, markersize=4)
    low, high = [f.low[metric] for f in line], [f.high[metric] for f in line]
    axis.vlines(across, low, high, color=colour, alpha=0.4, linewidth=1)


def _finish(
    figure: Figure, axis: Axes, across: tuple[str, Sequence[int]], metric: str, path: Path
) -> None:
    """Scales, labels and ticks; across: the label below and where its ticks stand."""
    label, ticks = across
    low, _ = axis.get_ylim()
    axis.set(xscale="log", xlabel=label, ylabel=metric, yscale="log" if low > 0 else "symlog")
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    for formatter in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
        formatter(LogFormatter(minor_thresholds=(1.5, 0.5)))
    axis.legend(frameon=False, fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=140)
