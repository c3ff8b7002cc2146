"""What came out of tools/compare.py: the best setting of each method and number of evaluations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from compare_plan import Cell, Method, actual_evaluations
from compare_reference import LATENTS, Judgement

from autoencoder.sources.naming import public_name
from latentddm.engine.atomic_io import read_json
from latentddm.engine.errors import UserError
from latentddm.engine.run import RunFolder
from latentddm.evaluation.protocol import Result, require_same_protocol
from latentddm.inference.best_settings import write_best_settings
from latentddm.inference.generator import checkpoint_at
from latentddm.inference.settings import SamplingConfig
from latentddm.inference.xi_scale import format_scales


@dataclass(frozen=True)
class Finding:
    """One setting of one method at one number of evaluations, averaged over runs and seeds.

    values: by "features/metric", the mean; low, high: the means of the intervals' ends; spread:
    the standard deviation over runs and seeds, None for one of them.
    """

    method: Method
    evaluations: int
    setting: dict[str, Any]
    values: dict[str, float]
    low: dict[str, float]
    high: dict[str, float]
    spread: dict[str, float | None]
    seconds_per_image: float
    picture: str  # the first run's and seed's
    sampling: SamplingConfig  # the first run's and seed's

    def to_json(self) -> dict[str, Any]:
        """All but `sampling`, of which `setting` has the part that is swept."""
        values = {**vars(self), "method": str(self.method)}
        del values["sampling"]
        return values


def read_findings(cells: Sequence[Cell], judgement: Judgement, folder: Path) -> list[Finding]:
    """The findings of finished cells; UserError if their protocols differ."""
    groups: dict[tuple[Any, ...], list[Cell]] = {}
    for cell in cells:
        key = (cell.method, cell.sampling.steps, cell.setting)
        groups.setdefault(key, []).append(cell)
    protocols: dict[str, Result] = {}
    return [_finding(group, judgement, folder, protocols) for group in groups.values()]


def _finding(
    cells: Sequence[Cell], judgement: Judgement, folder: Path, first: dict[str, Result]
) -> Finding:
    protocol = judgement.to_plain()
    entries = [read_json(folder / f"{cell.key(protocol)}.json") for cell in cells]
    measured = [
        {name: Result.from_json(value) for name, value in entry["results"].items()}
        for entry in entries
    ]
    for results in measured:
        for name, result in results.items():
            require_same_protocol(first.setdefault(name, result).protocol, result.protocol)
    names, cell = list(measured[0]), cells[0]
    several = len(measured) > 1
    return Finding(
        method=cell.method,
        evaluations=cell.sampling.steps,
        setting={
            "churn": cell.sampling.churn,
            "safety": cell.sampling.safety,
            "grid": cell.sampling.grid or "uniform",
            "power": cell.sampling.power,
            "xi_scale": cell.sampling.xi_scale,
            "noise_scale": cell.sampling.noise_scale,
            "network_evaluations": actual_evaluations(cell),
        },
        values={name: fmean(m[name].value for m in measured) for name in names},
        low={name: fmean(m[name].low for m in measured) for name in names},
        high={name: fmean(m[name].high for m in measured) for name in names},
        spread={
            name: stdev([m[name].value for m in measured]) if several else None for name in names
        },
        seconds_per_image=fmean(entry["seconds_per_image"] for entry in entries),
        picture=f"{cell.key(protocol)}.png",
        sampling=cell.sampling,
    )


def best_findings(findings: Sequence[Finding], metric: str) -> list[Finding]:
    """The best setting by `metric` of each method and number of evaluations, method by method."""
    best: dict[tuple[Method, int], Finding] = {}
    for finding in findings:
        key = (finding.method, finding.evaluations)
        if key not in best or finding.values[metric] < best[key].values[metric]:
            best[key] = finding
    methods = list(dict.fromkeys(finding.method for finding in findings))
    return sorted(best.values(), key=lambda f: (methods.index(f.method), f.evaluations))


def require_newest(methods: Sequence[Method]) -> None:
    """UserError for a run of which older weights are compared: settings kept are of the newest."""
    pairs = sorted((method.images, trained.run) for method in methods for trained in method.runs)
    latest = {run: images for images, run in pairs}
    for run, images in latest.items():
        if checkpoint_at(RunFolder(Path(run))).images > images:
            raise UserError(
                f"--keep-best would write into {run} what was measured at {images:,} images, and "
                "it has been trained for longer; compare its newest weights, or leave it out."
            )


def keep_best_settings(best: Sequence[Finding], metric: str, judgement: Judgement) -> None:
    """Write into each run the best setting of all its methods, for its last number of images."""
    chosen: dict[str, dict[int, Finding]] = {}
    latest: dict[str, int] = {}
    for finding in sorted(best, key=lambda f: (-f.method.images, f.values[metric])):
        for trained in finding.method.runs:
            if latest.setdefault(trained.run, finding.method.images) == finding.method.images:
                chosen.setdefault(trained.run, {}).setdefault(finding.evaluations, finding)
    reference = judgement.store if metric.startswith(f"{LATENTS}/") else judgement.reference
    what = "reconstructions of " if judgement.reconstructed and reference != judgement.store else ""
    by = f"{metric}, {judgement.samples:,} samples against {what}{public_name(str(reference))}"
    for run, findings in chosen.items():
        settings = {steps: finding.sampling for steps, finding in findings.items()}
        phase = checkpoint_at(RunFolder(Path(run))).phase
        write_best_settings(Path(run), phase, by, settings)


def training_record(method: Method) -> dict[str, Any]:
    """A method's fields, its images and its seconds of training, the mean over its runs.

    Runs that these began with (a start, a student's teacher) count too. On a CPU, seconds are those
    of its cores, so that other work does not count.
    """
    efforts = [RunFolder(Path(trained.run)).effort(method.images) for trained in method.runs]
    seconds = fmean(effort.core_seconds for effort in efforts)
    record = {"images": efforts[0].images, "training_seconds": round(seconds, 3)}
    return asdict(method) | record


def table(best: Sequence[Finding], metric: str, records: Mapping[Method, Mapping[str, Any]]) -> str:
    """Methods down, evaluations across, beside each number its setting; Markdown."""
    across = sorted({finding.evaluations for finding in best})
    methods = list(dict.fromkeys(finding.method for finding in best))
    at = {(finding.method, finding.evaluations): finding for finding in best}
    lines = [
        f"{metric}: the best of the settings tried of each method (churn, safety, grid, scales). "
        "On a CPU, minutes of training are core minutes.\n",
        "| method | images seen | training | " + " | ".join(map(str, across)) + " |",
        "|---" * (len(across) + 3) + "|",
    ]
    for method in methods:
        images, seconds = (records[method][key] for key in ("images", "training_seconds"))
        cells = [_cell(at[method, n], metric) if (method, n) in at else "" for n in across]
        lines.append(
            f"| {method.series} | {images:,} | {seconds / 60:,.1f} min | "
            + " | ".join(cells)
            + " |"
        )
    return "\n".join(lines) + "\n"


def _cell(finding: Finding, metric: str) -> str:
    setting = finding.setting
    parts = [f"c {setting['churn']:g}"] if setting["churn"] else []
    parts += [f"s {setting['safety']:g}"] if setting["safety"] else []
    grid = f"u^{setting['power']:g}" if setting["grid"] == "power" else setting["grid"]
    parts += [grid] if grid != "uniform" else []
    parts += [f"xi {format_scales(setting['xi_scale'], ':')}"] if setting["xi_scale"] != 1 else []
    parts += [f"noise {setting['noise_scale']:g}"] if setting["noise_scale"] != 1 else []
    spread = finding.spread[metric]
    value = f"{finding.values[metric]:.3g}" + (f" ± {spread:.1g}" if spread is not None else "")
    return f"{value} ({', '.join(parts)})" if parts else value
