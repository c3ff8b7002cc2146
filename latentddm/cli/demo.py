"""`latentddm demo`: every stage, from images to a report."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from latentddm.cli.arguments import find_config
from latentddm.cli.verb import Outcome, Verb


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", help="a folder, zip, tar shards ... (default: portraits)")
    parser.add_argument("--output", help="the folder of the report (default: demo)")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="changes to configs/demo.yaml"
    )


def _run(arguments: argparse.Namespace) -> Outcome:
    from latentddm.demo import DemoConfig, run_demo
    from latentddm.engine.atomic_io import read_json
    from latentddm.engine.config import load_config

    overrides = [
        f"{key}={json.dumps(value)}"  # in quotes: YAML reads a folder named `no` as false
        for key in ("images", "output")
        if (value := getattr(arguments, key))
    ]
    config = load_config(DemoConfig, find_config("demo.yaml"), [*overrides, *arguments.overrides])
    page = run_demo(config)
    report = read_json(Path(page).with_suffix(".json"))
    return Outcome(f"The report is {page}", {"page": str(page), "report": report})


VERB = Verb(
    name="demo",
    summary="Run every stage on the embedded portraits, or on your images.",
    add_arguments=_add_arguments,
    run=_run,
    examples=("latentddm demo", "latentddm demo --images FOLDER --output mine"),
    memory="generator.loop.batch_size or autoencoder.loop.batch_size",
)
