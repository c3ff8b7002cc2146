"""The tables of tools/ruler.py: excess over unaltered pictures, ratios, agreement with FID."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from ruler_sets import OTHERS, UNALTERED
from torchmetrics.functional import kendall_rank_corrcoef, spearman_corrcoef

from latentddm.engine.errors import UserError
from latentddm.evaluation.protocol import Result

Figures = Mapping[str, Mapping[str, Any]]
"""{set: figures of the bench} of one feature space."""
BLUR = "blur-0.6"
RULE = {"halves": 1.2, "quarters": 2.5}
"""The least ratio of an alteration's excess to that of the blur: below what FID has."""
FEWEST_SETS = 3  # for a rank correlation


@dataclass(frozen=True)
class Judgements:
    """Blind pairwise judgements: (the better set, the worse set), one for each that was made."""

    pairs: tuple[tuple[str, str], ...]

    @classmethod
    def read(cls, path: Path, known: Sequence[str]) -> Judgements:
        """From JSON [{"better": NAME, "worse": NAME}, ...]; UserError for anything else."""
        try:
            entries = json.loads(path.read_text(encoding="utf-8"))
            pairs = tuple((entry["better"], entry["worse"]) for entry in entries)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(
                f'{path} is no list of {{"better": SET, "worse": SET}}: {error!r}.'
            ) from error
        for name in (name for pair in pairs for name in pair):
            if name not in known:
                raise UserError(f"{path} names the set {name!r}; known are {', '.join(known)}.")
        return cls(pairs)

    def agreement(self, distances: Mapping[str, float]) -> float:
        """The share of the judgements that the order of the distances repeats."""
        agreed = [distances[better] < distances[worse] for better, worse in self.pairs]
        return sum(agreed) / len(agreed)


def value(figures: Figures, name: str, metric: str) -> float:
    return float(figures[name]["results"][metric]["value"])


def excess(figures: Figures, metric: str) -> dict[str, float]:
    """The distance of each set less that of the unaltered pictures."""
    floor = value(figures, UNALTERED, metric)
    return {name: value(figures, name, metric) - floor for name in figures if name != UNALTERED}


def ratios(figures: Figures, metric: str = "frechet") -> dict[str, float]:
    """Excess of halves and of quarters over that of the blur; the rule asks for RULE."""
    over = excess(figures, metric)
    # A blur that costs nothing is passed by any excess: infinitely, not negatively.
    blur = max(over[BLUR], 0.0)
    return {name: over[name] / blur if blur else float("inf") for name in RULE}


def rank_correlations(
    first: Mapping[str, float], second: Mapping[str, float], names: Sequence[str]
) -> dict[str, float] | None:
    """Spearman's rho and Kendall's tau-b over the named sets; None for fewer than three."""
    if len(names) < FEWEST_SETS:
        return None
    a, b = (torch.tensor([values[name] for name in names]) for values in (first, second))
    return {
        "spearman": float(spearman_corrcoef(a, b)),
        "kendall": float(cast(torch.Tensor, kendall_rank_corrcoef(a, b))),
    }


def summary(
    spaces: Mapping[str, Figures],
    samples: Sequence[str],
    anchor: str | None,
    judgements: Judgements | None,
) -> dict[str, Any]:
    """All figures of a measurement by space.

    samples: the sets of runs, whose order is compared by itself too. anchor: the space whose
    Fréchet distance (FID) the others are compared with; None: with none.
    """
    found: dict[str, Any] = {}
    for space, figures in spaces.items():
        over = excess(figures, "frechet")
        entry = {
            "dimension": next(iter(figures.values()))["dimension"],
            # The least is the least disturbed by other work on the machine.
            "seconds_per_1000": min(f["seconds_per_1000"] for f in figures.values()),
            "unaltered": value(figures, UNALTERED, "frechet"),
            "noise": abs(over[OTHERS]),
            "excess": over,
            "kernel_excess": excess(figures, "kernel"),
            "precision": {n: value(figures, n, "precision") for n in figures},
            "recall": {n: value(figures, n, "recall") for n in figures},
            "ratios": ratios(figures),
        }
        entry["passes"] = all(entry["ratios"][name] > least for name, least in RULE.items())
        if anchor is not None:
            truth = excess(spaces[anchor], "frechet")
            everything = [name for name in over if name != OTHERS]
            entry["with_anchor"] = {
                "all sets": rank_correlations(over, truth, everything),
                "samples": rank_correlations(over, truth, samples),
            }
        if judgements is not None:
            distances = {name: value(figures, name, "frechet") for name in figures}
            entry["agreement"] = judgements.agreement(distances)
        found[space] = entry
    return found


def text_table(found: Mapping[str, Any], sets: Sequence[str]) -> str:
    """A row for each space: Fréchet excess by set, ratios, correlations, seconds."""
    shown = [name for name in sets if name != UNALTERED]
    heads = ["space", "D", UNALTERED, *shown, "halves / blur", "quarters / blur", "rule"]
    heads += ["Spearman, Kendall (all)", "(samples)", "agreement", "s / 1,000"]
    rows = [heads, ["---"] * len(heads)]
    for space, entry in found.items():
        with_anchor = entry.get("with_anchor", {})
        rows.append(
            [
                space,
                str(entry["dimension"]),
                f"{entry['unaltered']:.3g}",
                *(f"{entry['excess'][name]:+.3g}" for name in shown),
                *(f"{entry['ratios'][name]:.2f}" for name in RULE),
                "passes" if entry["passes"] else "fails",
                *(_correlation(with_anchor.get(part)) for part in ("all sets", "samples")),
                f"{entry['agreement']:.2f}" if "agreement" in entry else "",
                f"{entry['seconds_per_1000']:.2f}",
            ]
        )
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def order_table(spaces: Mapping[str, Figures], sets: Sequence[str]) -> str:
    """The sets from best to worst in each space."""
    return "\n".join(
        f"{space}: " + " < ".join(sorted(sets, key=lambda n: value(figures, n, "frechet")))
        for space, figures in spaces.items()
    )


def check(results: Figures) -> None:
    """UserError unless all figures of a space were measured by one protocol, counts apart."""
    first = Result.from_json(next(iter(results.values()))["results"]["frechet"]).protocol
    for figures in results.values():
        protocol = Result.from_json(figures["results"]["frechet"]).protocol
        if protocol.n != first.n:
            raise UserError(
                "Sets of different size have different bias in the Fréchet distance: "
                f"{protocol.n} images in {figures['set']}, {first.n} in others; lower --count."
            )


def _correlation(values: Mapping[str, float] | None) -> str:
    return "" if values is None else f"{values['spearman']:.2f}, {values['kendall']:.2f}"
