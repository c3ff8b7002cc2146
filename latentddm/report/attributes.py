"""Which attributes of the portraits a generator loses: shares beside those of the reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from latentddm.report.formatting import number, percent, text


def attributes(rows: Sequence[dict[str, Any]], methods: Sequence[dict[str, Any]]) -> str:
    """A small table of bars for each attribute, what was lost most first."""
    worst_first = sorted(rows, key=lambda row: -max(row["distance"].values()))
    tables = "".join(_table(row, methods) for row in worst_first)
    return (
        f"<p>The share of the pictures that show each value, and the distance of these shares "
        f"from those of the reference: 0 is the same, 1 has nothing in common.</p>"
        f'<div class="attributes">{tables}</div>'
    )


def _table(row: dict[str, Any], methods: Sequence[dict[str, Any]]) -> str:
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
