"""`latentddm evaluate`: distances of images from a reference."""

from __future__ import annotations

import argparse
from pathlib import Path

from latentddm.cli.arguments import SOURCE_HELP, add_keys_argument
from latentddm.cli.verb import Outcome, Verb

NAMED_KEYS = 5  # how many unreadable images a line names


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", metavar="IMAGES", help=SOURCE_HELP)
    parser.add_argument("--reference", required=True, metavar="SRC", help="the reference images")
    parser.add_argument("--metrics", help="names, e.g. fid,kid,prdc (default: frechet,energy)")
    parser.add_argument("--features", help="default: pyramid-v2, or inception for fid and kid")
    add_keys_argument(parser)
    parser.add_argument("--num", type=int, help="NUM random images of each side")
    parser.add_argument("--size", type=int, help="crop and resize both sides to N pixels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", metavar="FILE.json", help="write results and protocols")


def _run(arguments: argparse.Namespace) -> Outcome:
    from latentddm.engine.atomic_io import make_folder, remove_leftovers, write_json
    from latentddm.engine.devices import default_device
    from latentddm.engine.errors import UserError
    from latentddm.evaluation.folders import EvaluationOptions, evaluate_folders

    options = EvaluationOptions(
        metrics=arguments.metrics.split(",") if arguments.metrics else None,
        features=arguments.features,
        num=arguments.num,
        size=arguments.size,
        seed=arguments.seed,
        sample_keys=arguments.keys,
        device=str(default_device()),
        show_progress=True,
    )
    if arguments.output:  # a wrong path is refused before the measuring
        output = Path(arguments.output)
        if output.is_dir():
            raise UserError(f"--output {output} is a folder; name a file in it.")
        make_folder(output.parent)
        remove_leftovers(output.parent, [f"{output.name}."])
    evaluation = evaluate_folders(arguments.images, arguments.reference, options)
    lines = [str(result) for result in evaluation.results.values()]
    for side, keys in evaluation.unreadable.items():
        if keys:
            named = ", ".join(keys[:NAMED_KEYS])
            lines.append(f"{side}: {len(keys)} images could not be read: {named}")
    values = evaluation.to_json()
    if arguments.output:
        write_json(output, values)
    return Outcome("\n".join(lines), values)


VERB = Verb(
    name="evaluate",
    summary="Measure the distance of images from a reference.",
    add_arguments=_add_arguments,
    run=_run,
    examples=(
        "latentddm evaluate samples/images --reference faces/ --size 256",
        "latentddm evaluate samples/images --reference faces/ --metrics fid,kid,prdc --num 10000",
    ),
    memory="--num",
)
