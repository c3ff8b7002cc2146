"""The tables of the page: all numbers of the comparison, shares of attributes, times of stages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from latentddm.report.formatting import duration, interval, number, percent, ratio, text

DISTANCES = {
    "frechet": "Fréchet distance of the images",
    "energy": "Energy distance of the images",
    "original_frechet": "Fréchet distance of the images from the originals",
    "original_energy": "Energy distance of the images from the originals",
    "latent_frechet": "Fréchet distance of the latents",
    "latent_energy": "Energy distance of the latents",
}
HEADLINE_STEPS = 4
ResultsBySteps = dict[int, dict[str, dict[str, Any]]]


def headline_steps(every: Iterable[int]) -> int:
    """The number of evaluations that the top of the report shows, among `every` measured one."""
    every = list(every)
    return HEADLINE_STEPS if HEADLINE_STEPS in every else min(every)


def results_by_steps(methods: Sequence[dict[str, Any]]) -> ResultsBySteps:
    """{evaluations: {key of the method: result}}, fewest evaluations first."""
    found: ResultsBySteps = {}
    for method in methods:
        for result in method["results"]:
            found.setdefault(result["steps"], {})[method["key"]] = result
    return dict(sorted(found.items()))


def numbers(methods: Sequence[dict[str, Any]], floor: dict[str, Any]) -> str:
    """One table per metric: the methods side by side, and their ratio."""
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


def attributes(rows: Sequence[dict[str, Any]], methods: Sequence[dict[str, Any]]) -> str:
    """A small table of bars for each attribute, largest distance first."""
    worst_first = sorted(rows, key=lambda row: -max(row["distance"].values()))
    tables = "".join(_attribute_table(row, methods) for row in worst_first)
    return (
        f"<p>The share of the images with each value, and the total variation distance of these "
        f"shares from those of the reference: 0 for equal shares, 1 for disjoint values.</p>"
        f'<div class="attributes">{tables}</div>'
    )


def stages(entries: Sequence[dict[str, Any]], total: float) -> str:
    """The time of every stage, as a bar relative to the longest, with its details."""
    longest = max(entry["seconds"] for entry in entries) or 1.0
    rows = "".join(
        f"<tr><th>{text(entry['name'])}<small>{text(entry['detail'])}</small></th>"
        f"<td>{duration(entry['seconds'])}</td>"
        f'<td class="bar" style="--share:{100 * entry["seconds"] / longest:.1f}%"></td></tr>'
        for entry in entries
    )
    return (
        f'<table class="stages"><tbody>{rows}</tbody><tfoot><tr><th>Total</th>'
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


def _attribute_table(row: dict[str, Any], methods: Sequence[dict[str, Any]]) -> str:
    heads = "".join(
        f'<th class="method-{place}">{text(_short(method["label"]))}</th>'
        for place, method in enumerate(methods)
    )
    body = "".join(
        f"<tr><th>{text(value)}</th>{_bar(share, 'reference')}"
        + "".join(
            _bar(row[method["key"]][value], f"method-{place}")
            for place, method in enumerate(methods)
        )
        + "</tr>"
        for value, share in row["reference"].items()
    )
    distances = "".join(f"<td>{number(row['distance'][m['key']])}</td>" for m in methods)
    return (
        f"<table><caption>{text(row['name'].replace('_', ' '))}</caption>"
        f"<thead><tr><th></th><th>reference</th>{heads}</tr></thead><tbody>{body}</tbody>"
        f"<tfoot><tr><th>distance</th><td></td>{distances}</tr></tfoot></table>"
    )


def _short(label: str) -> str:
    """A label without its bracket, for a narrow column."""
    return label.partition(" (")[0]


def _bar(share: float, kind: str) -> str:
    return f'<td class="bar {kind}" style="--share:{100 * share:.1f}%">{percent(share)}</td>'
