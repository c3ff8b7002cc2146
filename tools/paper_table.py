"""The last page of tools/paper.py: the comparison, published figures, a verdict by evaluations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from latentddm.engine.atomic_io import read_json, write_text
from latentddm.engine.errors import UserError

PUBLISHED = Path(__file__).with_name("published.json")
# By the first word of a method's name; what is none of them is a rival.
KINDS = {"plain": "plain diffusion", "DDM": "DDM", "student": "a student"}


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


def write_table(output: Path, figures: Sequence[Published]) -> None:
    """Write OUTPUT/table.md from what tools/compare.py has written into OUTPUT/comparison."""
    comparison = output / "comparison"
    results = read_json(comparison / "results.json")
    parts = [(comparison / "table.md").read_text(encoding="utf-8"), verdict_table(results)]
    if figures:
        counts = {best["evaluations"] for best in results["best"]}
        parts.append(published_table(figures, sorted(counts)))
    text = "\n".join(parts)
    write_text(output / "table.md", text)
    print(text)
    print(f"Wrote {output / 'table.md'}.")


def verdict_table(results: Mapping[str, Any]) -> str:
    """The best of each kind of method by evaluations, and the DDM's ratio to the best other."""
    metric, best = results["best_by"], results["best"]
    lines = [
        f"{metric}, the best row of each kind; the ratio is the DDM's to the best other: below 1 "
        "it is ahead. Differences within the deviations over seeds are none.\n",
        "| evaluations | best of all | " + " | ".join([*KINDS.values(), "a rival"]) + " | ratio |",
        "|---" * (len(KINDS) + 4) + "|",
    ]
    for count in sorted({each["evaluations"] for each in best}):
        rows = [_row(each, metric) for each in best if each["evaluations"] == count]
        leading = {
            kind: min((row for row in rows if row.kind == kind), key=lambda row: row.value)
            for kind in {row.kind for row in rows}
        }
        of_kinds = [leading.get(kind) for kind in (*KINDS.values(), "a rival")]
        others = [row.value for kind, row in leading.items() if kind != "DDM"]
        ddm = leading.get("DDM")
        ratio = f"{ddm.value / min(others):.2f}" if ddm and others else ""
        cells = ["" if row is None else str(row) for row in of_kinds]
        first = min(rows, key=lambda row: row.value)
        lines.append(f"| {count} | {first.series} | " + " | ".join(cells) + f" | {ratio} |")
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
    series = best["method"].rpartition(" at ")[0]
    first = series.split(",")[0].split("-")[0]
    kind = KINDS.get(first, "a rival")
    return _Row(series, kind, best["values"][metric], best["spread"][metric])


def published_table(figures: Sequence[Published], counts: Sequence[int]) -> str:
    """Published FIDs in the columns of the table: other, larger networks and longer trainings."""
    lines = [
        "Published FID, of other and much larger networks and trainings: for the order of the "
        "methods, not for the size of the numbers.\n",
        "| published | data | " + " | ".join(map(str, counts)) + " | source |",
        "|---" * (len(counts) + 3) + "|",
    ]
    for row in figures:
        cells = [f"{row.fid[count]:g}" if count in row.fid else "" for count in counts]
        lines.append(f"| {row.method} | {row.data} | {' | '.join(cells)} | {row.source} |")
    return "\n".join(lines) + "\n"
