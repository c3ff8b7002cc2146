"""`latentddm completion`: a script for the completion of verbs and options in a shell."""

from __future__ import annotations

import argparse

from latentddm.cli.verb import Outcome, Verb
from latentddm.engine.errors import UserError

SHELLS = ("bash", "zsh", "tcsh")


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=SHELLS)


def _run(arguments: argparse.Namespace) -> Outcome:
    try:
        import shtab
    except ImportError:
        raise UserError("The package shtab is not installed; run `pip install shtab`.") from None
    from latentddm.cli.parser import build_parser

    script = shtab.complete(build_parser(), shell=arguments.shell)
    return Outcome(script, {"script": script})


VERB = Verb(
    name="completion",
    summary="Print a script that completes verbs and options in a shell.",
    add_arguments=_add_arguments,
    run=_run,
    examples=(
        "latentddm completion bash > ~/.local/share/bash-completion/completions/latentddm",
        "latentddm completion zsh > ~/.zfunc/_latentddm",
    ),
)
