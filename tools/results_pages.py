"""The pages of tools/results/: tables and curves of each TOPIC/README.md, made from results.json.

    python tools/results_pages.py [TOPIC ...]

A README holds the text and, between `<!-- table NAME -->` and `<!-- end -->`, a table of the JSON;
this writes the tables again and draws the curves (SVG) beside them. Run it after an edit of a
results.json; tests/tools/test_results_pages.py fails until it has been run.

results.json: {"topic", "tables": [{"name", "title", "metrics": {KEY: its name}, "columns": [...],
"x": the quantity of the columns, "extras": {KEY: heading}, "rows": [{"name", KEY: [a number or null
for each column], KEY_sd: standard deviations over trainings, "notes": {column: remark}, extras}]}],
"curves": [{"file", "panels": [{"table", "metric", "title", "rows": [names]}]}]}.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from command_line import exit_code
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogFormatter, NullLocator

from latentddm.engine.atomic_io import atomic_path, write_text
from latentddm.engine.errors import UserError

RESULTS = Path(__file__).with_name("results")
DATA, PAGE = "results.json", "README.md"

# DDM blue, plain diffusion orange, as in tools/toy2d_pictures.py; distilled and others apart.
SHADES = {
    "DDM": ("#1f6fb4", "#0b3c68", "#6aaee0", "#9cc9ec"),
    "plain": ("#d1661f", "#8a3c08", "#e9a06c", "#f2c6a6"),
    "distilled": ("#3a8f4d",),
    "other": ("#404040", "#1f6fb4", "#d1661f", "#3a8f4d", "#8a55a8"),
}
MARKERS = "osD^vPX*"
_TABLE = re.compile(r"<!-- table (\S+) -->\n.*?<!-- end -->", re.DOTALL)


class Number(str):
    """A number with the digits that the file has: 0.80 stays 0.80."""


def read_topic(folder: Path) -> dict[str, Any]:
    """The results of a topic, numbers as `Number`; UserError for a file that is no JSON."""
    try:
        text = (folder / DATA).read_text(encoding="utf-8")
        topic: dict[str, Any] = json.loads(text, parse_float=Number, parse_int=Number)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / DATA} cannot be read: {error}.") from error
    return topic


def topics(folder: Path = RESULTS) -> list[Path]:
    """The folders of all topics, in order."""
    return sorted(path.parent for path in folder.glob(f"*/{DATA}"))


def find(items: Sequence[dict[str, Any]], name: str, where: str) -> dict[str, Any]:
    """The table or row of a name; UserError naming those that exist."""
    for item in items:
        if item["name"] == name:
            return item
    known = ", ".join(item["name"] for item in items)
    raise UserError(f"{where}: there is no {name!r}; the names are {known}.")


def markdown(table: dict[str, Any]) -> str:
    """A table of the JSON as markdown; the metrics of a cell stand behind each other."""
    extras = table.get("extras", {})
    head = ["", *table["columns"], *extras.values()]
    rows = [
        [
            row["name"],
            *(_cell(row, table, place) for place in range(len(table["columns"]))),
            *(str(row.get(key, "")) for key in extras),
        ]
        for row in table["rows"]
    ]
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(row: dict[str, Any], table: dict[str, Any], place: int) -> str:
    parts = []
    for key in table["metrics"]:
        value = row.get(key, [None] * (place + 1))[place]
        if value is not None:
            deviation = row.get(f"{key}_sd", [None] * (place + 1))[place]
            parts.append(f"{value} ± {deviation}" if deviation is not None else str(value))
    note = row.get("notes", {}).get(table["columns"][place])
    return " / ".join(parts) + (f" ({note})" if note else "")


def page_with_tables(page: str, topic: dict[str, Any], where: str) -> str:
    """The text of a README with every table as the JSON has it."""

    def fill(match: re.Match[str]) -> str:
        table = find(topic["tables"], match[1], where)
        return f"<!-- table {match[1]} -->\n{markdown(table)}\n<!-- end -->"

    return _TABLE.sub(fill, page)


def fingerprint(topic: dict[str, Any], curve: dict[str, Any]) -> str:
    """A hash of all that a curve is drawn from; it is written into the picture."""
    used = {panel["table"] for panel in curve["panels"]}
    data = [curve, [table for table in topic["tables"] if table["name"] in used]]
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def draw(topic: dict[str, Any], curve: dict[str, Any], path: Path) -> None:
    """Draw the panels of a curve beside each other into an SVG."""
    panels = curve["panels"]
    figure = Figure(figsize=(4.6 * len(panels) + 0.6, 3.6), layout="constrained")
    for axis, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        table = find(topic["tables"], panel["table"], topic["topic"])
        _draw_panel(axis, panel, table)
    metadata = {"Date": None, "Description": fingerprint(topic, curve)}
    # Text as text and a fixed salt: small files that change only when the data do.
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": "latentddm"}
    with matplotlib.rc_context(settings), atomic_path(path) as temporary:
        figure.savefig(temporary, format="svg", metadata=metadata)


def _draw_panel(axis: Axes, panel: dict[str, Any], table: dict[str, Any]) -> None:
    columns = [float(column) for column in table["columns"]]
    counts = dict.fromkeys(SHADES, 0)
    for place, name in enumerate(panel["rows"]):
        row = find(table["rows"], name, table["name"])
        points = [
            (x, float(value))
            for x, value in zip(columns, row[panel["metric"]], strict=True)
            if value is not None
        ]
        family = _family(name)
        shade = SHADES[family][counts[family] % len(SHADES[family])]
        counts[family] += 1
        axis.plot(
            *zip(*points, strict=True),
            marker=MARKERS[place % len(MARKERS)],
            markersize=4,
            linewidth=1.4,
            color=shade,
            label=name.replace("`", ""),
        )
    axis.set(xscale="log", yscale="log", title=panel["title"], xlabel=table["x"])
    axis.set_ylabel(table["metrics"][panel["metric"]])
    axis.set_xticks(columns, [f"{column:g}" for column in columns])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.2, 0.6)))
    axis.grid(alpha=0.3)
    axis.legend(fontsize="x-small")


def _family(name: str) -> str:
    if "distilled" in name:
        return "distilled"
    return next((family for family in ("DDM", "plain") if name.startswith(family)), "other")


def update(folder: Path) -> Iterator[Path]:
    """Write the tables and curves of a topic; yields the files that it wrote."""
    topic = read_topic(folder)
    page = folder / PAGE
    write_text(page, page_with_tables(page.read_text(encoding="utf-8"), topic, str(page)))
    yield page
    for curve in topic.get("curves", ()):
        draw(topic, curve, folder / curve["file"])
        yield folder / curve["file"]


def run(names: Sequence[str]) -> None:
    """Update the topics of these names, all of them if there are none."""
    folders = [RESULTS / name for name in names] or topics()
    for folder in folders:
        for path in update(folder):
            print(path.relative_to(RESULTS))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tool; 0 done, 1 the work failed, 2 the request was wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("topics", nargs="*", metavar="TOPIC", help="folders of tools/results")
    parsed = parser.parse_args(arguments)
    return exit_code(lambda: run(parsed.topics))


if __name__ == "__main__":
    raise SystemExit(main())
