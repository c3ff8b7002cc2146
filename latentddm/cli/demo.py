"""`latentddm demo`: every stage, from images to a report."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

from latentddm.cli.arguments import AUTOENCODER_HELP, find_config
from latentddm.cli.verb import Outcome, Verb
from latentddm.engine.errors import UserError

KEYS = {  # of the config, by the names of the options
    "images": "images",
    "output": "output",
    "autoencoder": "pretrained",
    "minutes": "minutes",
}


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--images", metavar="SRC", help="a folder, zip, tar shards ... (default: portraits)"
    )
    parser.add_argument(
        "--autoencoder",
        metavar="REF",
        help=f"{AUTOENCODER_HELP} (default for your images: the hub's tiny one if it can be had at "
        "once, else the embedded one)",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        help="of the whole work, which chooses its sizes (default for your images: 5; without it "
        "the portraits have fixed sizes)",
    )
    parser.add_argument("--output", metavar="DIR", help="the folder of the report (default: demo)")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="changes to configs/demo.yaml, or for your images to configs/demo_own.yaml",
    )


def _run(arguments: argparse.Namespace) -> Outcome:
    started = time.monotonic()
    from latentddm.demo import DemoConfig, run_demo
    from latentddm.demo.sizing import PLANNED_KEYS
    from latentddm.engine.atomic_io import read_json
    from latentddm.engine.config import load_config

    options = [
        f"{key}={json.dumps(value)}"  # in quotes: YAML reads a folder named `no` as false
        for option, key in KEYS.items()
        if (value := getattr(arguments, option)) is not None
    ]
    overrides = [*options, *arguments.overrides]
    config = load_config(DemoConfig, find_config(_preset(overrides)), overrides)
    if config.minutes is not None:
        _refuse_sizes(arguments.overrides, PLANNED_KEYS)
    page = run_demo(config, startup=time.monotonic() - started)
    report = read_json(Path(page).with_suffix(".json"))
    return Outcome(f"The report is {page}", {"page": str(page), "report": report})


def _preset(overrides: Sequence[str]) -> str:
    """The config of fixed sizes for the portraits, the other one for all that is not the default.

    The portraits with an autoencoder or a number of minutes go the way of other images.
    """
    values = dict(override.partition("=")[::2] for override in overrides)
    images = values.get("images", "portraits").strip("\"'")
    own = images.partition(":")[0] != "portraits"
    return "demo_own.yaml" if own or {"pretrained", "minutes"} & values.keys() else "demo.yaml"


def _refuse_sizes(overrides: Sequence[str], planned: Sequence[str]) -> None:
    """UserError for a size that `minutes` would replace."""
    for override in overrides:
        key = override.partition("=")[0]
        if key in planned:
            raise UserError(
                f"{key} is chosen by minutes; add minutes=null to size the work yourself, or leave "
                f"{key} out."
            )


VERB = Verb(
    name="demo",
    summary="Run every stage on the embedded portraits, or on your images.",
    add_arguments=_add_arguments,
    run=_run,
    examples=(
        "latentddm demo",
        "latentddm demo --images FOLDER --output mine",
        "latentddm demo --images FOLDER --autoencoder vae/ --minutes 30 --output mine",
    ),
    memory="generator.loop.batch_size or autoencoder.loop.batch_size",
)
