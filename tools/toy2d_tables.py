"""The tables of the toy: means and deviations over seeds, as aligned text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean, stdev
from typing import Any


def means(reports: Sequence[Any]) -> Any:
    """The mean over reports of one structure, number by number."""
    return _merge(reports, fmean)


def deviations(reports: Sequence[Any]) -> Any:
    """The standard deviation over reports, number by number; None for a single one."""
    return _merge(reports, stdev) if len(reports) > 1 else None


def _merge(reports: Sequence[Any], merge: Callable[[Sequence[float]], float]) -> Any:
    first = reports[0]
    if isinstance(first, dict):
        return {key: _merge([report[key] for report in reports], merge) for key in first}
    if isinstance(first, list):
        return [_merge(items, merge) for items in zip(*reports, strict=True)]
    return merge(reports)


def table(name: str, report: dict[str, Any], deviation: dict[str, Any] | None = None) -> str:
    """The figures of one target, with their deviations over seeds where there are several."""
    lines = [f"{name}: squared MMD (RBF kernel of bandwidth h), less is better; target: the floor"]
    lines += _squared_mmd(report, deviation)
    if "equal_seconds" in report:
        lines.append(f"{name}: the same after as many seconds of training")
        lines += _squared_mmd(
            report["equal_seconds"], deviation["equal_seconds"] if deviation else None
        )
    lines.append(f"{name}: energy distance to the exact posterior, averaged over x_t")
    for place, row in enumerate(report["posterior"]):
        ratio = f"{row['ratio']:.2%}"
        if deviation:
            ratio += f" ± {deviation['posterior'][place]['ratio']:.2%}"
        lines.append(
            f"  t = {row['t']:g}: DDM {row['DDM']:.2e}, the exact mean {row['mean']:.2e}, "
            f"ratio {ratio}"
        )
    for model, took in report["training"].items():
        lines.append(
            f"{name}: trained {model} in {took['seconds']:.0f} s "
            f"({took['cpu_seconds']:.0f} s of processor time)"
        )
    return "\n".join(lines) + "\n"


def _squared_mmd(report: dict[str, Any], deviation: dict[str, Any] | None) -> list[str]:
    """A line of columns, and one for each bandwidth and number of evaluations."""
    rows = report["squared_mmd"]
    deviating = deviation["squared_mmd"] if deviation else [{}] * len(rows)
    columns = list(dict.fromkeys(key for row in rows for key in row))[2:]  # after h and NFE
    lines = [f"{'h':>6}{'NFE':>6}" + "".join(f"{column:>21}" for column in columns)]
    for row, beside in zip(rows, deviating, strict=True):
        cells = [_number(row.get(column), beside.get(column)) for column in columns]
        line = f"{row['bandwidth']:>6g}{row['nfe']:>6.0f}" + "".join(
            f"{cell:>21}" for cell in cells
        )
        lines.append(line.rstrip())
    return lines


def _number(value: float | None, deviation: float | None) -> str:
    """A figure and its deviation; published figures have none of ours."""
    if value is None:
        return ""
    return f"{value:.2e}" + (f" ± {deviation:.0e}" if deviation else "")
