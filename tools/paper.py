"""The paper's table on one store: plain diffusion, a DDM and its rivals, on one network and clock.

    python tools/paper.py CONFIG.yaml --hours 6 --output paper [key=value ...]

CONFIG trains a DDM in two phases, the first of them plain diffusion. Every method sees as many
images in the same two shares: plain diffusion all of them, a DDM and each rival (shortcut model,
MeanFlow, inductive moment matching) the second share by its own objective, with the optimizer of
the config. The network is one, but that a rival's reads the end of a step (times: 2). The number
of images fills the hours, by the speed of each method, which is measured here first (plan.json).
Then tools/compare.py: every sampler at its best setting in 1, 2, 4 and 8 evaluations, the images
seen and the seconds of training beside each (comparison/table.md). Each stage is a command, which
is printed, and goes on where it stopped; so does the table, when its command is run again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from preparation import exit_code
from stages import Stage, run_stages

from latentddm.cli.arguments import find_config
from latentddm.demo.sizing import shortened
from latentddm.engine.atomic_io import read_json, write_json, write_text
from latentddm.engine.config import differences, load_config, to_plain, to_yaml
from latentddm.engine.errors import UserError
from latentddm.training.config import TrainConfig
from latentddm.training.generator import measure_phases
from latentddm.training.objective import Objective, PlainObjective
from latentddm.training.phases import Phase
from latentddm.training.rivals import InductiveObjective, MeanFlowObjective, ShortcutObjective

PLAIN, DDM = "plain", "DDM"
RIVALS: Mapping[str, Objective] = {
    "shortcut": ShortcutObjective(),
    "mean-flow": MeanFlowObjective(improved=True),
    "inductive": InductiveObjective(),
}
SOLVERS = {PLAIN: "ddim,dpmsolver++,unipc", DDM: "ddim,dpmsolver++"}
MEASURED = 10_000  # images of the training whose speed is measured: any number


def methods(config: TrainConfig) -> dict[str, Objective]:
    """The objective of each method's second share, by name; UserError for other phases.

    A rival that compares the samples of a group has none of their labels, and is left out where
    the network has classes.
    """
    if [phase.objective.kind for phase in config.phases] != ["plain", "ddm"]:
        raise UserError(
            "phases must be two, of kind plain and ddm, from which every method has its share of "
            "images and its optimizer; change them."
        )
    rivals = {
        name: objective
        for name, objective in RIVALS.items()
        if not (config.network.classes and objective.group_size > 1)
    }
    return {PLAIN: PlainObjective(), DDM: config.phases[1].objective, **rivals}


def config_of(
    config: TrainConfig, objective: Objective, images: int, output: Path, seed: int
) -> TrainConfig:
    """The training of one method: `images` in the shares of the config's two phases."""
    (mean, own), batch = config.phases, config.loop.batch_size
    first = round(images * mean.images / (mean.images + own.images) / batch) * batch
    first = min(max(first, batch), images - batch)
    phases: tuple[Phase, ...] = (shortened(mean, images),)
    if not isinstance(objective, PlainObjective):
        own = replace(own, objective=objective)
        phases = (shortened(mean, first), shortened(own, images - first))
    network = replace(config.network, times=2 if objective.learns_flow_map else 1)
    return replace(config, network=network, phases=phases, output=str(output), seed=seed)


def planned_images(config: TrainConfig, options: argparse.Namespace) -> int:
    """The images that every method sees, for ever the same in an output folder.

    UserError if the folder has another plan, or if the hours are too few.
    """
    path: Path = options.output / "plan.json"
    asked = {"hours": options.hours, "seeds": options.seeds, "config": to_plain(config)}
    if path.is_file():
        plan = read_json(path)
        changed = differences({key: plan[key] for key in asked}, asked)
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
    batch, of_all = config.loop.batch_size, options.seeds * sum(seconds.values())
    batches = int(3600 * options.hours / of_all / batch)
    if batches < 2:
        raise UserError(
            f"--hours is {options.hours}, too short for two batches of every method: an image "
            f"seen by all of them takes {of_all:.2g} s."
        )
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
    """A training of each method and seed, then the comparison of all."""
    out: Path = options.output
    trainings, compared = [], []
    for name, objective in methods(config).items():
        runs = []
        for seed in range(config.seed, config.seed + options.seeds):
            run, path = out / "runs" / f"{name}-{seed}", out / "configs" / f"{name}-{seed}.yaml"
            write_text(path, to_yaml(config_of(config, objective, images, run, seed)))
            command = [sys.executable, "-m", "latentddm", "train", str(path)]
            trainings.append(Stage(f"{name}, seed {seed}", command))
            runs.append(str(run))
        solvers = f":{SOLVERS[name]}" if name in SOLVERS else ""
        compared += ["--method", f"{name}={','.join(runs)}{solvers}"]
    comparison = [sys.executable, str(Path(__file__).with_name("compare.py")), *compared]
    comparison += ["--evaluations", options.evaluations, "--output", str(out / "comparison")]
    return [*trainings, Stage("comparison", [*comparison, *options.compare])]


def run(options: argparse.Namespace) -> None:
    """Plan, train, compare."""
    if options.hours <= 0 or options.seeds < 1:
        raise UserError("--hours must be positive, and --seeds at least 1.")
    config = load_config(TrainConfig, find_config(options.config), options.overrides)
    images = planned_images(config, options)
    print(f"Every method sees {images:,} images.", flush=True)
    run_stages(stages(config, images, options))


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
    add("--evaluations", default="1,2,4,8", help="default 1,2,4,8")
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
