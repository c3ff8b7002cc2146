"""Compare runs and solvers at few evaluations: draw, decode, evaluate, tabulate, plot.

    python tools/compare.py --method DDM=demo/ddm --method plain=demo/plain:all \\
        --reference portraits:4000 --reconstructed --samples 600 --output comparison

Every method is tried with every setting (churn and safety of DDIM, grid and safety of the other
solvers, the grid alone of a flow map, the scale of xi where a network reads it, that of the noise
at t = 1) at every number of evaluations, and its best setting counts; several runs of a method
(RUN,RUN,...: trainings of other seeds) are averaged. Written are table.md, results.json (all
settings, with their protocols), curves.png, trend.png where a run is given at several checkpoints
(RUN@all), and grids/. Run the same command again to go on after a stop: a finished cell (one
setting of one run with one seed) is not measured again. `accelerate launch tools/compare.py ...`
uses all processes.

The best of many settings, chosen and reported on the same samples, looks better than it is. With
--confirm N settings are chosen on --samples of the first run of each method, and the table is of N
fresh samples of every run at the settings chosen.

With --keep-best the best settings are written into the runs themselves, where `latentddm sample`,
`play` and `export` find them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from command_line import exit_code, list_of
from compare_measure import Bench
from compare_pictures import draw_curves, draw_grids, draw_trends
from compare_plan import Cell, Method, fresh_cells, parse_methods, plan_cells
from compare_reference import LATENTS, Judgement, References, with_content
from compare_results import (
    Finding,
    best_findings,
    keep_best_settings,
    read_findings,
    require_newest,
    table,
    training_record,
)
from compare_sweep import Sweep

from latentddm.engine.atomic_io import make_folder, write_json, write_text
from latentddm.engine.distributed import start_processes
from latentddm.engine.errors import UserError
from latentddm.engine.progress import Progress
from latentddm.engine.run import RunFolder
from latentddm.inference.xi_scale import read_scales

LONGEST = timedelta(days=7)  # that a process waits for the others' share of the cells


def run(options: argparse.Namespace) -> None:
    """Measure the missing cells, on all processes; the main one writes the results."""
    methods, sweep = parse_methods(options.method), sweep_of(options)
    judgement = with_content(judgement_of(options, methods[0].runs[0].run))
    metric = deciding_metric(options.best_by, judgement)
    require_each_class(methods, options)
    if options.keep_best:
        require_newest(methods)
    reported, screened = judgement, methods
    if options.confirm is not None:
        reported = replace(judgement, samples=options.confirm)
        screened = [replace(method, runs=method.runs[:1]) for method in methods]
    cells = plan_cells(screened, sweep, options.batch_size)
    folder: Path = options.output / "cells"
    make_folder(folder)
    accelerator = start_processes(handlers=[InitProcessGroupKwargs(timeout=LONGEST)])
    references = References(judgement, accelerator.device)
    _measure(cells, Bench(judgement, references), folder, accelerator)
    findings = read_findings(cells, judgement, folder)
    best = best_findings(findings, metric)
    if options.confirm is not None:
        chosen = [(finding.method, finding.sampling) for finding in best]
        cells = fresh_cells(chosen, methods, options.seeds)
        _measure(cells, Bench(reported, references), folder, accelerator)
        best = best_findings(read_findings(cells, reported, folder), metric)
    if accelerator.is_main_process:
        _write(options.output, findings, best, reported, metric)
        if options.keep_best:
            keep_best_settings(best, metric, reported)


def _measure(cells: Sequence[Cell], bench: Bench, folder: Path, accelerator: Accelerator) -> None:
    """Measure this process's share of the missing cells; returns when all processes have."""
    missing, samples = _missing(cells, bench.judgement, folder), bench.judgement.samples
    accelerator.wait_for_everyone()  # else a quick process changes the cells that a slow one finds
    mine = missing[accelerator.process_index :: accelerator.num_processes]
    work = sum(cell.sampling.steps for cell in mine) * samples
    show = accelerator.is_main_process
    with Progress(work, f"{len(mine)} cells", unit="evaluations", show=show) as progress:
        for cell in mine:
            bench.measure(cell, folder)
            progress.update(cell.sampling.steps * samples)
    accelerator.wait_for_everyone()


def _missing(cells: Sequence[Cell], judgement: Judgement, folder: Path) -> list[Cell]:
    protocol = judgement.to_plain()
    return [cell for cell in cells if not (folder / f"{cell.key(protocol)}.json").is_file()]


def _write(
    output: Path,
    findings: Sequence[Finding],
    best: Sequence[Finding],
    judgement: Judgement,
    metric: str,
) -> None:
    """Table, numbers and pictures; judgement: of the best, which the table has."""
    methods = list(dict.fromkeys(finding.method for finding in best))
    records = {method: training_record(method) for method in methods}
    values = {
        "protocol": judgement.to_plain(),
        "best_by": metric,
        "methods": [{"series": m.series, **records[m]} for m in methods],
        "best": [finding.to_json() for finding in best],
        "settings": [finding.to_json() for finding in findings],
    }
    write_json(output / "results.json", values)
    text = table(best, metric, records)
    write_text(output / "table.md", text)
    draw_curves(output / "curves.png", best, metric)
    trend = draw_trends(output / "trend.png", best, metric)
    draw_grids(output / "grids", best, output / "cells")
    print(text)
    pictures = "curves.png, trend.png" if trend else "curves.png"
    print(f"Wrote table.md, results.json, {pictures} and grids/ to {output}.")


def sweep_of(options: argparse.Namespace) -> Sweep:
    """The settings to be tried; UserError names an impossible range."""
    return Sweep(
        evaluations=options.evaluations,
        churn=options.churn,
        safety=options.safety,
        grids=options.grids,
        powers=options.powers,
        xi_scales=options.xi_scales,
        noise_scales=options.noise_scales,
        seeds=tuple(range(options.seeds)),
        tries=options.tries,
    )


def judgement_of(options: argparse.Namespace, first_run: str | None) -> Judgement:
    """The judgement of the options, with the store of the first run where none is named."""
    judgement = Judgement(
        samples=options.samples,
        reference=options.reference,
        store=options.store,
        reference_images=options.reference_images,
        reconstructed=options.reconstructed,
        features=options.features,
        metrics=options.metrics,
    )
    if LATENTS in judgement.features and judgement.store is None and first_run is not None:
        store = RunFolder(Path(first_run)).read_config()["store"]
        judgement = replace(judgement, store=store)
    return judgement


def require_each_class(methods: Sequence[Method], options: argparse.Namespace) -> None:
    """UserError for fewer samples than classes: images are drawn class by class, in turn."""
    classes = max(trained.classes for method in methods for trained in method.runs)
    for name in ("samples", "confirm"):
        given = getattr(options, name)
        if given is not None and given < classes:
            raise UserError(
                f"--{name} is {given}, too few for one of each of the {classes} classes; give at "
                f"least {classes}."
            )


def deciding_metric(asked: str | None, judgement: Judgement) -> str:
    """The metric of the best setting: the first distance, unless another is given."""
    known = judgement.distances
    if not known:
        raise UserError("--metrics has no distance to choose the best setting by; add frechet.")
    if asked is not None and asked not in known:
        raise UserError(f"--best-by {asked} is not measured; choose one of {', '.join(known)}.")
    return asked or known[0]


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, sweep, judgement = parser.add_argument, Sweep(), Judgement(reference="")
    numbers, words = list_of(float), list_of(str)
    method = (
        "NAME=RUN[,RUN...][@IMAGES][:SOLVER[/GRID],...]; several runs are averaged, @all every "
        "checkpoint, :all every solver, /GRID of times in the place of --grids; repeat"
    )
    add("--method", action="append", required=True, metavar="METHOD", help=method)
    add("--output", type=Path, required=True, metavar="DIR")
    add("--reference", metavar="SRC", help="images to compare with")
    add("--reconstructed", action="store_true", help="compare with their reconstructions")
    add("--store", help="reference of the features `latents` (default: the first run's)")
    samples = "samples drawn of each setting (default 10000)"
    add("--samples", type=int, default=judgement.samples, help=samples)
    images = "images of the reference (default 10000)"
    add("--reference-images", type=int, default=judgement.reference_images, help=images)
    add(
        "--features",
        type=words,
        default=judgement.features,
        help=f"any of pyramid-v2, inception, latents (default {','.join(judgement.features)})",
    )
    add("--metrics", type=words, default=judgement.metrics, help="default frechet,energy")
    add("--best-by", metavar="FEATURES/METRIC", help="what decides (default: the first)")
    add("--evaluations", type=list_of(int), default=sweep.evaluations, help="default 1,2,...,50")
    add("--churn", type=numbers, default=sweep.churn, help="default 0,0.5,1")
    add("--safety", type=numbers, default=sweep.safety, help="default 0,0.02,0.05")
    grids = "grids of times to try with solvers other than ddim (default: all)"
    add("--grids", type=words, default=sweep.grids, help=grids)
    add("--powers", type=numbers, default=sweep.powers, help="of the power grid (default 0.5)")
    scales = list_of(partial(read_scales, separator=":"))
    of_xi = "of xi: N, or N:N... by evaluation, or FIRST..LAST evenly (default 1)"
    add("--xi-scales", type=scales, default=sweep.xi_scales, metavar="SCALE,...", help=of_xi)
    add("--noise-scales", type=numbers, default=sweep.noise_scales, help="at t = 1 (default 1)")
    add("--seeds", type=int, default=1, help="how many times each setting is drawn (default 1)")
    tries = (
        "try about N settings of each method at each number of evaluations, chosen at random "
        "(default: all)"
    )
    add("--tries", type=int, metavar="N", help=tries)
    add("--confirm", type=int, metavar="N", help="report N fresh samples of the best settings")
    add("--batch-size", type=int, default=64)
    keep_best = "write the best settings into each run, for sample, play and export"
    add("--keep-best", action="store_true", help=keep_best)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tool; 0 done, 1 the work failed, 2 the request was wrong."""
    parsed = make_parser().parse_args(arguments)
    return exit_code(lambda: run(parsed))


if __name__ == "__main__":
    raise SystemExit(main())
