"""`latentddm ema`: the moving average of any width, reconstructed from a run's snapshots."""

from __future__ import annotations

import argparse
from pathlib import Path

from latentddm.cli.verb import Outcome, Verb


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN")
    parser.add_argument(
        "--width", type=float, required=True, help="std of the average, as a share of the training"
    )
    parser.add_argument("--output", metavar="FILE.safetensors", help="default: a file in RUN/ema")


def _run(arguments: argparse.Namespace) -> Outcome:
    from latentddm.engine.posthoc_ema import reconstruct
    from latentddm.engine.run import RunFolder
    from latentddm.inference.generator import RUN_KIND

    run = RunFolder.open(arguments.run, RUN_KIND)
    output = Path(arguments.output) if arguments.output else None
    path, error = reconstruct(run, arguments.width, output)
    return Outcome(
        f"The average of width {arguments.width:g} is {path} (error of its profile: "
        f"{error:.2%}); sample with --ema {output or f'{arguments.width:g}'}",
        {"width": arguments.width, "file": str(path), "profile_error": error},
    )


VERB = Verb(
    name="ema",
    summary="Reconstruct the moving average of another width from a run's snapshots.",
    add_arguments=_add_arguments,
    run=_run,
    examples=(
        "latentddm ema run --width 0.08",
        "latentddm sample run --ema 0.08 --output samples --decode",
    ),
)
