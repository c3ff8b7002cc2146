"""The report's tables: every number of the comparison, and the times of the stages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from latentddm.report.formatting import duration, interval, number, ratio, text

DISTANCES = {
    "frechet": "Fréchet distance of the pictures",
    "energy": "Energy distance of the pictures",
    "latent_frechet": "Fréchet distance of the latents",
    "latent_energy": "Energy distance of the latents",
}
ResultsBySteps = dict[int, dict[str, dict[str, Any]]]


def results_by_steps(methods: Sequence[dict[str, Any]]) -> ResultsBySteps:
    """{evaluations: {method's key: its result}}, fewest evaluations first."""
    found: ResultsBySteps = {}
    for method in methods:
        for result in method["results"]:
            found.setdefault(result["steps"], {})[method["key"]] = result
    return dict(sorted(found.items()))


def numbers(methods: Sequence[dict[str, Any]], floor: dict[str, Any]) -> str:
    """One table for each thing that was measured: the methods side by side, and their ratio."""
    by_steps = results_by_steps(methods)
    tables = [
        _comparison(name, methods, by_steps, _measured(metric), _cell(metric), floor[metric])
        for metric, name in DISTANCES.items()
    ]
    if all(result["attributes"] is not None for m in methods for result in m["results"]):
        tables.append(
            _comparison(
                "Distance of attributes",
                methods,
                by_steps,
                lambda result: result["attributes"],
                lambda result: number(result["attributes"]),
            )
        )
    return f'<div class="pair">{"".join(tables)}</div>'


def stages(entries: Sequence[dict[str, Any]], total: float) -> str:
    """The time of every stage as a bar of the longest, and what was done."""
    longest = max(entry["seconds"] for entry in entries) or 1.0
    rows = "".join(
        f"<tr><th>{text(entry['name'])}<small>{text(entry['detail'])}</small></th>"
        f"<td>{duration(entry['seconds'])}</td>"
        f'<td class="bar" style="--share:{100 * entry["seconds"] / longest:.1f}%"></td></tr>'
        for entry in entries
    )
    return (
        f'<table class="stages"><tbody>{rows}</tbody><tfoot><tr><th>Together</th>'
        f"<td>{duration(total)}</td><td></td></tr></tfoot></table>"
    )


def _measured(metric: str) -> Callable[[dict[str, Any]], float]:
    return lambda result: result[metric]["value"]


def _cell(metric: str) -> Callable[[dict[str, Any]], str]:
    return lambda result: (
        f"{number(result[metric]['value'])}<small>{interval(result[metric])}</small>"
    )


def _comparison(
    title: str,
    methods: Sequence[dict[str, Any]],
    by_steps: ResultsBySteps,
    value: Callable[[dict[str, Any]], float],
    cell: Callable[[dict[str, Any]], str],
    floor: float | None = None,
) -> str:
    heads = "".join(
        f'<th class="method-{place}">{text(method["label"])}</th>'
        for place, method in enumerate(methods)
    )
    rows = []
    for steps, results in by_steps.items():
        ordered = [results[method["key"]] for method in methods]
        cells = "".join(f"<td>{cell(result)}</td>" for result in ordered)
        quotient = ratio(value(ordered[0]), value(ordered[-1]))
        rows.append(f"<tr><th>{steps}</th>{cells}<td>{quotient}</td></tr>")
    if floor is not None:
        rows.append(
            f'<tr class="floor"><th>floor</th><td colspan="{len(methods)}">{number(floor)}</td>'
            f"<td></td></tr>"
        )
    return (
        f'<table class="numbers"><caption>{text(title)}</caption>'
        f'<thead><tr><th><abbr title="network evaluations per image">NFE</abbr></th>{heads}'
        f"<th>Ratio</th></tr></thead><tbody>{''.join(rows)}</tbody></table>"
    )
