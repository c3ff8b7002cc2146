"""The last page of tools/paper.py: two comparisons, verdicts, effort, published figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import hypot
from pathlib import Path
from typing import Any, NamedTuple

from paper_methods import DDM, PLAIN, STUDENT, kind_of

from latentddm.engine.atomic_io import read_json, write_text
from latentddm.engine.errors import UserError

PUBLISHED = Path(__file__).with_name("published.json")
BY_IMAGES, BY_SECONDS = "images", "seconds"
TITLES = {
    BY_IMAGES: "## Equal images\n\nEvery method sees as many; a student its share of them beside "
    "its teacher's.\n",
    BY_SECONDS: "## Equal seconds\n\nEvery method trains for as long as the slowest of the table "
    "by images, a student's teacher included.\n",
}
KINDS = {PLAIN: "plain diffusion", DDM: "DDM", STUDENT: "a student"}  # the rest are rivals


class Published(NamedTuple):
    """A published row: FID by the number of evaluations, and where it is from."""

    data: str
    method: str
    source: str
    fid: Mapping[int, float]


def published_figures(data: str) -> list[Published]:
    """The published rows of a data set; UserError for one that published.json does not have."""
    content = read_json(PUBLISHED)
    known = content["data"]
    if data not in known:
        raise UserError(f"--published {data} is none of {', '.join(known)}.")
    return [
        Published(
            known[data]["title"] + (", by class" if row.get("classes") else ""),
            row["method"],
            content["sources"][row["source"]],
            {int(count): value for count, value in row["fid"].items()},
        )
        for row in known[data]["rows"]
    ]


def write_tables(output: Path, figures: Sequence[Published]) -> None:
    """Write OUTPUT/table.md from what tools/compare.py has written into OUTPUT/comparison-*."""
    parts, counts = [], set()
    for title, text in TITLES.items():
        comparison = output / f"comparison-{title}"
        if not (comparison / "results.json").is_file():
            continue
        results = read_json(comparison / "results.json")
        counts |= {best["evaluations"] for best in results["best"]}
        parts += [text, (comparison / "table.md").read_text(encoding="utf-8")]
        parts += [verdict_table(results), effort_table(results)]
    if figures:
        parts.append(published_table(figures, sorted(counts)))
    written = "\n".join(parts)
    write_text(output / "table.md", written)
    print(written)
    print(f"Wrote {output / 'table.md'}.")


def verdict_table(results: Mapping[str, Any]) -> str:
    """The best of each kind of method by evaluations, and the DDM's against the best other."""
    metric, best = results["best_by"], results["best"]
    lines = [
        f"{metric}, the best row of each kind, chosen on the samples reported: that favours kinds "
        "of many rows a little. The ratio is the DDM's to the best other. Level: their difference "
        "is below the root of the sum of their squared deviations over seeds (of one seed there "
        "is none, and nothing is level).\n",
        "| evaluations | ahead | " + " | ".join([*KINDS.values(), "a rival"]) + " | ratio |",
        "|---" * (len(KINDS) + 4) + "|",
    ]
    for count in sorted({each["evaluations"] for each in best}):
        rows = [_row(each, metric) for each in best if each["evaluations"] == count]
        leading = {
            kind: min((row for row in rows if row.kind == kind), key=lambda row: row.value)
            for kind in {row.kind for row in rows}
        }
        of_kinds = [leading.get(kind) for kind in (*KINDS.values(), "a rival")]
        cells = ["" if row is None else str(row) for row in of_kinds]
        verdict, ratio = _verdict(leading)
        lines.append(f"| {count} | {verdict} | " + " | ".join(cells) + f" | {ratio} |")
    return "\n".join(lines) + "\n"


class _Row(NamedTuple):
    series: str
    kind: str
    value: float
    spread: float | None

    def __str__(self) -> str:
        spread = f" ± {self.spread:.1g}" if self.spread is not None else ""
        return f"{self.value:.3g}{spread} ({self.series})"


def _row(best: Mapping[str, Any], metric: str) -> _Row:
    series = _series(best["method"])
    kind = KINDS.get(kind_of(_name(series)), "a rival")
    return _Row(series, kind, best["values"][metric], best["spread"][metric])


def _verdict(leading: Mapping[str, _Row]) -> tuple[str, str]:
    """The series that is ahead, or "level", and the ratio of the DDM to the best other."""
    others = [row for kind, row in leading.items() if kind != KINDS[DDM]]
    ddm = leading.get(KINDS[DDM])
    if ddm is None or not others:
        return min(leading.values(), key=lambda row: row.value).series, ""
    other = min(others, key=lambda row: row.value)
    level = (
        ddm.spread is not None
        and other.spread is not None
        and abs(ddm.value - other.value) < hypot(ddm.spread, other.spread)
    )
    ahead = ddm if ddm.value < other.value else other
    return "level" if level else ahead.series, f"{ddm.value / other.value:.2f}"


def effort_table(results: Mapping[str, Any]) -> str:
    """Trainings and settings tried of each method, which all its rows share."""
    tried: dict[str, dict[int, int]] = {}
    for setting in results["settings"]:
        of_name = tried.setdefault(_name(_series(setting["method"])), {})
        of_name[setting["evaluations"]] = of_name.get(setting["evaluations"], 0) + 1
    trainings = {_name(method["series"]): len(method["runs"]) for method in results["methods"]}
    counts = sorted({count for of_name in tried.values() for count in of_name})
    lines = [
        "Effort: the number of trainings, all with the one setting of the objective that was "
        "given, and the number of sampler settings tried at each number of evaluations, over all "
        "rows.\n",
        "| method | trainings | " + " | ".join(map(str, counts)) + " |",
        "|---" * (len(counts) + 2) + "|",
    ]
    for name, of_name in tried.items():
        cells = " | ".join(str(of_name.get(count, "")) for count in counts)
        lines.append(f"| {name} | {trainings[name]} | {cells} |")
    return "\n".join(lines) + "\n"


def _series(method: str) -> str:
    return method.rpartition(" at ")[0]


def _name(series: str) -> str:
    return series.split(",")[0]


def published_table(figures: Sequence[Published], counts: Sequence[int]) -> str:
    """Published FIDs in the columns of the table: other, larger networks and longer trainings."""
    lines = [
        "Published FIDs of 50,000 samples, of other and much larger networks and trainings. They "
        "show the order of the methods and are not comparable with the numbers above, which may "
        "also be of another metric.\n",
        "| published | data | " + " | ".join(map(str, counts)) + " | source |",
        "|---" * (len(counts) + 3) + "|",
    ]
    for row in figures:
        cells = [f"{row.fid[count]:g}" if count in row.fid else "" for count in counts]
        lines.append(f"| {row.method} | {row.data} | {' | '.join(cells)} | {row.source} |")
    return "\n".join(lines) + "\n"
