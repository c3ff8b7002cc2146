"""`latentddm export`: from a run to a folder for diffusers and the hub."""

from __future__ import annotations

import argparse
from pathlib import Path

from latentddm.cli.arguments import AUTOENCODER_HELP
from latentddm.cli.verb import Outcome, Verb


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("output", metavar="DIR", help="a new folder")
    parser.add_argument(
        "--ema", metavar="WIDTH", help="of the average, or its file (default: the first tracked)"
    )
    parser.add_argument(
        "--autoencoder", metavar="REF", help=f"default: the run's; {AUTOENCODER_HELP}"
    )
    parser.add_argument(
        "--evaluation", metavar="FILE.json", help="the output of `evaluate`, for the model card"
    )
    parser.add_argument(
        "--steps",
        type=int,
        metavar="N",
        help="whose settings are exported (default 4, or the nearest measured)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the sample grid")
    parser.add_argument("--license", default="other", help="of the weights, for the model card")
    parser.add_argument("--push-to-hub", metavar="ID", help="upload it as owner/name")
    parser.add_argument("--private", action="store_true", help="make the new repository private")


def _run(arguments: argparse.Namespace) -> Outcome:
    from latentddm.hub.export import ExportOptions, export_run, push_to_hub

    options = ExportOptions(
        ema=arguments.ema,
        autoencoder=arguments.autoencoder,
        evaluation=Path(arguments.evaluation) if arguments.evaluation else None,
        steps=arguments.steps,
        seed=arguments.seed,
        license=arguments.license,
    )
    folder = export_run(Path(arguments.run), Path(arguments.output), options)
    values = {"folder": str(folder)}
    if not arguments.push_to_hub:
        return Outcome(f"LatentDDMPipeline.from_pretrained({str(folder)!r}) loads it", values)
    address = push_to_hub(folder, arguments.push_to_hub, arguments.private)
    return Outcome(f"{folder} is on the hub: {address}", values | {"commit": address})


VERB = Verb(
    name="export",
    summary="Write a run as a folder that diffusers loads.",
    add_arguments=_add_arguments,
    run=_run,
    examples=(
        "latentddm export run exported",
        "latentddm export run exported --evaluation fid.json --push-to-hub me/faces-in-4-steps",
    ),
    memory="--steps",
)
