"""The paper's table on one store: plain diffusion, a DDM and its rivals, on one network and clock.

    python tools/paper.py CONFIG.yaml --hours 6 --output paper [key=value ...]

CONFIG trains a DDM in two phases, the first of them plain diffusion. Every method sees as many
images in the same two shares: plain diffusion all of them, a DDM and each rival (shortcut model,
MeanFlow, inductive moment matching) the second share by its own objective, with the optimizer of
the config. The network is one, but that a rival's reads the end of a step (times: 2). A student,
which is distilled from the plain network, sees the second share once more, and its row counts its
teacher's images too. The number of images fills the hours, by the speed of each method, which is
measured here first (plan.json). Then tools/compare.py: every sampler at its best setting, the
images seen and the seconds of training beside each (comparison/), and the table with published
figures and a verdict for each number of evaluations (table.md). Each stage is a command, which is
printed, and goes on where it stopped; so does the table, when its command is run again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from paper_methods import PLAIN, SOLVERS, config_of, methods, student_of
from paper_table import published_figures, write_table
from preparation import exit_code, list_of
from stages import Stage, run_stages

from latentddm.cli.arguments import find_config
from latentddm.engine.atomic_io import make_folder, read_json, write_json, write_text
from latentddm.engine.config import differences, load_config, to_plain, to_yaml
from latentddm.engine.errors import UserError
from latentddm.training.config import TrainConfig
from latentddm.training.generator import measure_phases

STUDENT_PRICE = 3.0  # a student's seconds for an image, in those of plain diffusion
MEASURED = 10_000  # images of the training whose speed is measured: any number


def planned_images(config: TrainConfig, options: argparse.Namespace) -> int:
    """The images that every method sees, for ever the same in an output folder.

    UserError if the folder has another plan, or if the hours are too few.
    """
    path: Path = options.output / "plan.json"
    asked = {
        "hours": options.hours,
        "seeds": options.seeds,
        "student_steps": list(options.student_steps),
        "config": to_plain(config),
    }
    if path.is_file():
        plan = read_json(path)
        changed = differences({key: plan.get(key) for key in asked}, asked)
        if changed:
            raise UserError(
                f"{path} is of another request (differs in: {', '.join(changed)}); repeat that "
                "one, or choose another --output."
            )
        return int(plan["images"])
    seconds = {
        name: _seconds_per_image(config_of(config, objective, MEASURED, options.output, 0))
        for name, objective in methods(config).items()
    }
    own = config.phases[1].images / sum(phase.images for phase in config.phases)
    seconds |= {_student(k): own * STUDENT_PRICE * seconds[PLAIN] for k in options.student_steps}
    batch, of_all = config.loop.batch_size, options.seeds * sum(seconds.values())
    batches = int(3600 * options.hours / of_all / batch)
    if batches < 2:
        raise UserError(
            f"--hours is {options.hours}, too short for two batches of every method: an image "
            f"seen by all of them takes {of_all:.2g} s."
        )
    make_folder(options.output / "configs")
    write_json(path, asked | {"images": batches * batch, "seconds_per_image": seconds})
    return batches * batch


def _seconds_per_image(config: TrainConfig) -> float:
    """Seconds of training for an image, the mean over the phases by their images."""
    total = sum(phase.images for phase in config.phases)
    return sum(
        phase.images / total / measured.images_per_second
        for phase, measured in zip(config.phases, measure_phases(config), strict=True)
    )


def stages(config: TrainConfig, images: int, options: argparse.Namespace) -> list[Stage]:
    """A training of each method and seed, the students, then the comparison of all."""
    out: Path = options.output
    runs: dict[str, list[str]] = {}
    trainings = []

    def add(name: str, seed: int, verb: str, made: Callable[[Path], Any]) -> None:
        run, path = out / "runs" / f"{name}-{seed}", out / "configs" / f"{name}-{seed}.yaml"
        write_text(path, to_yaml(made(run)))
        command = [sys.executable, "-m", "latentddm", verb, str(path)]
        trainings.append(Stage(f"{name}, seed {seed}", command))
        runs.setdefault(name, []).append(str(run))

    seeds = range(config.seed, config.seed + options.seeds)
    for (name, objective), seed in product(methods(config).items(), seeds):
        add(name, seed, "train", partial(config_of, config, objective, images, seed=seed))
    for steps, seed in product(options.student_steps, seeds):
        teacher = out / "runs" / f"{PLAIN}-{seed}"
        seeded = replace(config, seed=seed)
        made = partial(student_of, seeded, steps, images, teacher, options=options.distill)
        add(_student(steps), seed, "distill", made)

    comparison = [sys.executable, str(Path(__file__).with_name("compare.py"))]
    for name, of_name in runs.items():
        solvers = f":{SOLVERS[name]}" if name in SOLVERS else ""
        comparison += ["--method", f"{name}={','.join(of_name)}{solvers}"]
    comparison += ["--evaluations", options.evaluations, "--output", str(out / "comparison")]
    return [*trainings, Stage("comparison", [*comparison, *options.compare])]


def _student(steps: int) -> str:
    return f"student-of-{steps}"


def run(options: argparse.Namespace) -> None:
    """Plan, train, compare, write the table."""
    if options.hours <= 0 or options.seeds < 1 or min(options.student_steps, default=1) < 1:
        raise UserError("--hours must be positive, --seeds and --student-steps at least 1.")
    figures = published_figures(options.published) if options.published else []
    config = load_config(TrainConfig, find_config(options.config), options.overrides)
    images = planned_images(config, options)
    print(f"Every method sees {images:,} images.", flush=True)
    run_stages(stages(config, images, options))
    write_table(options.output, figures)


def _steps(text: str) -> tuple[int, ...]:
    return () if text == "none" else list_of(int)(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("config", metavar="CONFIG", help="of a DDM in two phases: plain, ddm")
    add("overrides", nargs="*", metavar="key=value", help="of the config, such as store=STORE")
    add("--hours", type=float, required=True, help="of training in all; comparing comes after")
    add("--output", type=Path, required=True, metavar="DIR")
    add("--seeds", type=int, default=1, help="trainings of each method (default 1)")
    add("--evaluations", default="1,2,4,8,10,15", help="default 1,2,4,8,10,15")
    add(
        "--student-steps",
        type=_steps,
        default=(4,),
        metavar="K,...",
        help="a student for each, trained for K steps (default 4; none: no student)",
    )
    add(
        "--distill",
        type=str.split,
        default=[],
        metavar="OPTIONS",
        help="of the students: --distill='optimizer.learning_rate=3e-4'",
    )
    add("--published", metavar="DATA", help="figures of published.json beside the table's")
    add(
        "--compare",
        type=str.split,
        default=[],
        metavar="OPTIONS",
        help="of compare.py: --compare='--reference SRC --features inception --metrics fid,kid'",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tool; 0 done, 1 a stage failed, 2 the request was wrong."""
    parsed = _parser().parse_intermixed_args(arguments)
    return exit_code(lambda: run(parsed))


if __name__ == "__main__":
    raise SystemExit(main())
