"""From a folder of images to a 4-step generator, in a number of hours.

    python tools/experiment.py --images SRC --hours 1 [--autoencoder REF] --output experiment

The stages: an autoencoder (unless REF is given), the latents, a DDM (its first phase plain
diffusion), plain diffusion on as many images for comparison, and tools/compare.py: the DDM by
UniPC on the power grid at several scales of xi beside plain diffusion by UniPC on two grids,
by FID where its Inception can be had and enough samples can be drawn in the time, else by the
built-in features. The first minutes measure this machine; the plan is printed and kept in
plan.json, and a restart goes on with it. A stage is sized when it begins, by the time that is left;
what was planned and taken is in report.md. Each stage is a command, which is printed, and goes on
where it stopped; so does the experiment, when its command is run again. With --minutes it stops in
time, everything saved: in pieces.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from command_line import exit_code, folder_of_runs
from experiment_plan import (
    FEWEST_FOR_FID,
    MEASURE,
    Plan,
    Rates,
    Work,
    make_plan,
    minutes_of_fid,
    stages_of,
)
from experiment_rates import autoencoder_of, measure_rates, sample_of
from experiment_stages import autoencoder_config, compared, generator_config, on_cuda, stage_of
from stages import kept_plan, run_stages

from autoencoder.images import open_source
from latentddm.engine.atomic_io import make_folder, write_json, write_text
from latentddm.engine.config import build, to_plain, to_yaml
from latentddm.engine.errors import UserError
from latentddm.evaluation.extractors import INCEPTION

REQUEST = ("images", "hours", "autoencoder", "size", "alone")


def run(options: argparse.Namespace) -> None:
    """All stages, or as many as the minutes allow; Interrupted if they ended first."""
    if options.hours <= 0:
        raise UserError(f"--hours must be positive, not {options.hours}.")
    ends = time.monotonic() + 60 * options.minutes if options.minutes else None
    state = open_state(options)
    for name in stages_of(state.work, state.rates):
        if name not in state.taken:
            state.replan()
            print(f"The plan:\n{state.plan.describe()}", flush=True)
        stage = stage_of(name, state.plan, options)
        left = None if ends is None else max((ends - time.monotonic()) / 60, 1e-3)
        with state.timed(name):
            run_stages([stage], left)
    text = report(state, options)
    write_text(options.output / "report.md", text)
    print(text)


@dataclass
class State:
    """The plan of an experiment and the seconds that its stages have taken, in plan.json."""

    path: Path
    request: Mapping[str, object]
    work: Work
    rates: Rates
    plan: Plan
    first: dict[str, float]  # seconds of each stage as planned at the beginning
    taken: dict[str, float]

    def replan(self) -> None:
        """Size the stages that have not begun by the time that is left."""
        self.plan = make_plan(self.work, self.rates, self.taken, self.plan)
        self.write()

    def timed(self, name: str) -> _Clock:
        return _Clock(self, name)

    def write(self) -> None:
        values = {name: to_plain(getattr(self, name)) for name in ("work", "rates", "plan")}
        write_json(
            self.path,
            {"request": self.request, **values, "first": self.first, "taken": self.taken},
        )


class _Clock:
    """Adds the seconds of a block to those that a stage has taken, however it ends."""

    def __init__(self, state: State, name: str) -> None:
        self.state, self.name = state, name

    def __enter__(self) -> None:
        self.started, self.before = time.monotonic(), self.state.taken.get(self.name, 0.0)
        self.state.taken[self.name] = self.before
        self.state.write()  # begun: its sizes are kept from now on

    def __exit__(self, *_: object) -> None:
        self.state.taken[self.name] = self.before + time.monotonic() - self.started
        self.state.write()


def open_state(options: argparse.Namespace) -> State:
    """The state in the output folder, or a new one after a look at the images and the machine.

    UserError if the folder's is of another request, or the hours are too few.
    """
    path: Path = options.output / "plan.json"
    request = {name: getattr(options, name) for name in REQUEST}
    kept = kept_plan(path, request)
    if kept is not None:
        parts: dict[str, Any] = {
            name: build(kind, kept[name], str(path), f"{name}.")
            for name, kind in (("work", Work), ("rates", Rates), ("plan", Plan))
        }
        return State(path, request, **parts, first=kept["first"], taken=kept["taken"])
    started = psutil.Process().create_time()  # the imports of this command count as well
    print("Measuring the rates of this machine ...", flush=True)
    source = open_source(options.images, size=options.size)
    sampled = sample_of(source, options.size)
    training = autoencoder_config(options)
    autoencoder = autoencoder_of(options.autoencoder, training)
    generator = generator_config(options, autoencoder)
    make_folder(options.output)
    write_text(options.output / "generator.yaml", to_yaml(generator))
    tried, reported = compared(rival=not options.alone)
    work = Work(
        seconds=3600 * options.hours,
        available=len(source),
        batch=generator.loop.batch_size,
        tried=tuple(tried),
        reported=tuple(reported),
        rival=not options.alone,
    )
    trained = training if options.autoencoder is None else None
    rates = measure_rates(work, source, sampled, autoencoder, trained, generator)
    taken = {MEASURE: time.time() - started}
    plan = make_plan(work, rates, taken, None)
    state = State(path, request, work, rates, plan, plan.seconds, taken)
    state.write()
    return state


def report(state: State, options: argparse.Namespace) -> str:
    """Markdown: the table of the comparison, the time of each stage, the way to more samples."""
    out: Path = options.output
    rows = [
        f"| {name} | {state.first.get(name, 0) / 60:.1f} | {seconds / 60:.1f} |"
        for name, seconds in state.taken.items()
    ]
    asked, whole = state.work.seconds, sum(state.taken.values())
    return "\n".join(
        [
            f"# A 4-step generator of {options.images}\n",
            (out / "comparison" / "table.md").read_text("utf-8"),
            f"{state.plan.samples:,} samples a row against "
            f"{min(state.plan.samples, state.work.available):,} reconstructions, at the setting "
            f"that was best by {state.plan.trial_samples:,} others{no_fid(state)}. "
            f"Pictures: {out / 'comparison' / 'grids'}. More of them:\n",
            f"    latentddm sample {out / 'ddm'} --steps 4 --output samples --decode\n",
            f"{whole / 60:.1f} minutes of {asked / 60:.1f} asked for ({whole / asked:.0%}).\n",
            "| stage | minutes, first plan | taken |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )


def no_fid(state: State) -> str:
    """Why the comparison is not by FID, as the end of a sentence; empty if it is."""
    if state.plan.features == INCEPTION:
        return ""
    minutes = minutes_of_fid(state.work, state.rates, state.plan, INCEPTION)
    if minutes is None:
        return "; not by FID, whose Inception cannot be had here"
    if state.work.available < FEWEST_FOR_FID:
        return f"; not by FID, which needs {FEWEST_FOR_FID:,} images"
    return f"; by FID, with {FEWEST_FOR_FID:,} samples, it would take {minutes:.0f} minutes here"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, size = parser.add_argument, 128 if on_cuda() else 64
    add("--images", required=True, metavar="SRC", help="a folder, zip, tar shards ...")
    add("--hours", type=float, required=True, help="of the whole work, which choose its sizes")
    add("--autoencoder", metavar="REF", help="a pretrained one (default: one is trained)")
    add("--size", type=int, default=size, help="pixels a side (default 64; 128 with a GPU)")
    add("--alone", action="store_true", help="no plain diffusion beside the DDM: more images")
    add("--output", type=folder_of_runs, default=Path("experiment"), help="default ./experiment")
    add("--minutes", type=float, help="stop after these, everything saved (default: never)")
    add("--perceptual-file", metavar="FILE", help="AlexNet's weights, where nothing downloads")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tool; 0 done, 1 a stage failed, 2 the request was wrong, 143 more is to be done."""
    parsed = _parser().parse_args(arguments)
    return exit_code(lambda: run(parsed))


if __name__ == "__main__":
    raise SystemExit(main())
