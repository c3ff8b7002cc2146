"""`latentddm play`: a local page to play with a run."""

from __future__ import annotations

import argparse
import sys
import threading
from contextlib import suppress
from pathlib import Path

from latentddm.cli.verb import Outcome, Verb
from latentddm.play.serving import HOST, PORT


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("--port", type=int, default=PORT, help=f"default {PORT}")
    parser.add_argument(
        "--host", default=HOST, help=f"default {HOST}, this machine alone; 0.0.0.0: all"
    )
    parser.add_argument(
        "--ema", metavar="WIDTH", help="or file of the average (default: the first)"
    )


def _run(arguments: argparse.Namespace) -> Outcome:
    from latentddm.play import serving

    run = Path(arguments.run)
    with (
        suppress(KeyboardInterrupt),  # the way to end it
        serving(run, arguments.host, arguments.port, arguments.ema) as address,
    ):
        print(f"{address} shows {run}; Ctrl-C stops it.", file=sys.stderr)
        threading.Event().wait()
    return Outcome("The page is closed.", {"run": arguments.run})


VERB = Verb(
    name="play",
    summary="Open a local page of samples, trajectories and posterior draws.",
    add_arguments=_add_arguments,
    run=_run,
    examples=("latentddm play run", "latentddm play run --port 8000"),
    memory="the memory that other programs use",
)
