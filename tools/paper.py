"""The paper's tables on one store: plain diffusion, a DDM and its rivals, on one network and clock.

    python tools/paper.py CONFIG.yaml --hours 48 --output paper \\
        --compare='--reference SRC --features inception --metrics fid,kid' [key=value ...]

CONFIG trains a DDM in two phases, the first of them plain diffusion. Every method has the same two
shares of images: plain diffusion trains on both, a DDM and each rival (shortcut model, MeanFlow,
inductive moment matching) on the second by its own objective, with the optimizer of the config. All
have one network; a rival's also reads the end of a step (times: 2), MeanFlow's with lower time
frequencies. CUDA graphs and torch.compile are off for every method, so that seconds are comparable.
Students are distilled from the plain network on the second share once more; their rows count the
teacher's images and seconds.

Two tables: in the first every method sees as many images; in the second it trains for as many
seconds as the slowest one took for the first. tools/compare.py tries the settings of the samplers
of each method, as many of each as it has and the plan allows, and draws fresh samples at the best.
The hours are of all this. The first minute measures the machine and makes the plan (plan.json).
Each stage is a command, which is printed, and goes on where it stopped; so do the tables, when
their command is run again. They are in table.md: training minutes and images beside each row, the
effort of tuning, a verdict for each number of evaluations, published figures.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from command_line import exit_code, folder_of_runs, list_of
from compare import deciding_metric, judgement_of, make_parser, sweep_of
from compare_reference import Judgement
from compare_sweep import Sweep
from paper_methods import methods, rows, second_share, student_config, student_name
from paper_plan import Plan, make_plan
from paper_rates import measure_rates
from paper_stages import Work
from paper_table import BY_IMAGES, BY_SECONDS, published_figures, write_tables
from stages import kept_plan, run_stages

from latentddm.cli.arguments import find_config
from latentddm.engine.atomic_io import make_folder, write_json
from latentddm.engine.config import build, load_config, require_values, to_plain
from latentddm.engine.errors import UserError
from latentddm.training.config import TrainConfig

# The settings tried, the exact sampler's first; --compare goes over them.
SWEEP = (
    *("--churn", "0,0.5,1", "--safety", "0,0.02,0.05", "--grids", "uniform,log_snr,power"),
    *("--powers", "0.5,0.4", "--xi-scales", "1,0.8,1..0.5,1..0.25"),
    *("--noise-scales", "1,0.95,0.9,0.85"),
)


def run(options: argparse.Namespace) -> None:
    """Plan, train, compare, write the tables: by images, then by seconds."""
    if options.hours <= 0 or options.seeds < 1 or min(options.student_steps, default=1) < 1:
        raise UserError("--hours must be positive, --seeds and --student-steps at least 1.")
    for name, values in (("--student-steps", options.student_steps), ("--draws", options.draws)):
        if len(set(values)) < len(values):
            raise UserError(f"{name} has a number twice; leave one out.")
    if options.distill and not options.student_steps:
        raise UserError(
            "--distill has settings for students, but --student-steps is none; leave one of them "
            "out."
        )
    figures = published_figures(options.published) if options.published else []
    config = load_config(TrainConfig, find_config(options.config), options.overrides)
    require_values(config, "store")
    work = Work(
        output=options.output,
        config=config,
        objectives=methods(config, options.draws, options.rivals),
        student_steps=options.student_steps,
        distill=options.distill,
        seeds=options.seeds,
        compare=[*SWEEP, "--evaluations", options.evaluations, *options.compare],
    )
    for steps in work.student_steps:  # a wrong setting of theirs is refused before any training
        student_config(config, steps, config.loop.batch_size, (Path(), 0), Path(), work.distill)
    plan, kept = open_plan(work, options)
    print(f"The plan:\n{plan.describe()}", flush=True)
    own = {student_name(steps): second_share(config, plan.images) for steps in work.student_steps}
    sizes = {name: own.get(name, plan.images) for name in work.names}
    for title in (BY_IMAGES, BY_SECONDS):
        if title == BY_SECONDS:
            sizes = kept.get(title) or work.sizes_of_equal_seconds(sizes)
            kept[title] = sizes
            write_json(options.output / "plan.json", kept)
        run_stages(work.trainings(sizes, plan.images))
        run_stages([work.comparison(sizes, plan, options.output / f"comparison-{title}")])
        write_tables(options.output, figures)


def open_plan(work: Work, options: argparse.Namespace) -> tuple[Plan, dict[str, Any]]:
    """The plan in the output folder, or a newly measured one; and the content of plan.json.

    UserError if the folder's is of another request, if a request is wrong for tools/compare.py, or
    if the hours are too few: before anything is trained.
    """
    sweep, judgement = asked_of_compare(work)
    path: Path = options.output / "plan.json"
    request = {
        "hours": options.hours,
        "seeds": work.seeds,
        "objectives": {name: to_plain(each) for name, each in work.objectives.items()},
        "student_steps": list(work.student_steps),
        "distill": list(work.distill),
        "compare": list(work.compare),
        "config": to_plain(work.config),
    }
    kept = kept_plan(path, request)
    if kept is not None:
        return build(Plan, kept["plan"], str(path), "plan."), kept
    print("Measuring the rates of this machine ...", flush=True)
    config, students = work.config, len(work.student_steps)
    rates = measure_rates(config, work.objectives, students, judgement)
    planned = rows(work.objectives, work.student_steps, config.network.classes, work.seeds)
    plain, own = config.phases
    plan = make_plan(
        hours=options.hours,
        seeds=work.seeds,
        students=students,
        share=own.images / (plain.images + own.images),
        batch=config.loop.batch_size,
        rates=rates,
        rows=planned,
        sweep=sweep,
        judgement=judgement,
    )
    for folder in ("configs", "runs"):
        make_folder(options.output / folder)
    kept = {"request": request, "rates": to_plain(rates), "plan": to_plain(plan)}
    write_json(path, kept)
    return plan, kept


def asked_of_compare(work: Work) -> tuple[Sweep, Judgement]:
    """The sweep and the judgement of the comparisons; UserError for wrong ones."""
    parser = make_parser()
    parser.set_defaults(samples=None)  # so that a value that was given is seen below
    parsed = parser.parse_args([*work.compare, "--method", "any", "--output", "any"])
    for name in ("tries", "samples", "confirm"):
        if getattr(parsed, name) is not None:
            raise UserError(f"--compare has --{name}, which the hours decide; leave it out.")
    parsed.samples = Judgement.samples
    judgement = judgement_of(parsed, None)
    deciding_metric(parsed.best_by, judgement)
    return sweep_of(parsed), replace(judgement, store=judgement.store or work.config.store)


def _steps(text: str) -> tuple[int, ...]:
    return () if text == "none" else list_of(int)(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("config", metavar="CONFIG", help="a config with two phases, plain and ddm")
    add(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="changes of the config, such as store=STORE",
    )
    add(
        "--hours",
        type=float,
        required=True,
        help="hours for everything; all sizes follow from them",
    )
    add("--output", type=folder_of_runs, required=True, metavar="DIR")
    add(
        "--compare",
        type=shlex.split,
        default=[],
        metavar="OPTIONS",
        help="options for compare.py, at least --compare='--reference SRC'",
    )
    add("--seeds", type=int, default=3, help="trainings of each method (default 3)")
    add("--evaluations", default="1,2,4,8,10,15", help="default 1,2,4,8,10,15")
    add("--draws", type=list_of(int), default=(), metavar="M,...", help="a DDM for each number m")
    add(
        "--student-steps",
        type=_steps,
        default=(1, 2, 4, 8),
        metavar="K,...",
        help="a student for each, trained for K steps (default 1,2,4,8; none: no student)",
    )
    settings = "the students' optimizer, such as --distill='optimizer.learning_rate=3e-4'"
    add("--distill", type=shlex.split, default=[], metavar="SETTINGS", help=settings)
    settings = (
        "settings of the rivals, such as "
        "--rivals='inductive.decrement=15 mean-flow.velocity_share=0.25'"
    )
    add("--rivals", type=shlex.split, default=[], metavar="SETTINGS", help=settings)
    add(
        "--published",
        metavar="DATA",
        help="add the published figures of this data set from published.json",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tool; 0 done, 1 a stage failed, 2 the request was wrong."""
    parsed = _parser().parse_intermixed_args(arguments)
    return exit_code(lambda: run(parsed))


if __name__ == "__main__":
    raise SystemExit(main())
