"""The parser of the whole command line, built from the registry."""

from __future__ import annotations

import argparse
from typing import NoReturn

from latentddm import __version__
from latentddm.cli.registry import GROUPS, VERBS
from latentddm.cli.verb import Verb
from latentddm.engine.errors import UserError

DESCRIPTION = "Few-step latent image generators from a folder of pictures, with no teacher."


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the examples as they are, and calls a number N."""

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        return (
            "N"
            if action.type in (int, float)
            else super()._get_default_metavar_for_optional(action)
        )


class _VerbParser(argparse.ArgumentParser):
    """Says what is wrong with a command in one sentence, as everything else here does."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see `{self.prog} --help`.")


class _Parser(_VerbParser):
    """The parser before a verb is named; its help lists the verbs in their groups."""

    def format_help(self) -> str:
        width = max(len(verb.name) for verb in VERBS)
        lines = [self.format_usage().rstrip(), "", DESCRIPTION]
        for group, verbs in GROUPS.items():
            lines += ["", f"{group}:"]
            lines += [f"  {verb.name:<{width}}  {verb.summary}" for verb in verbs]
        lines += ["", "latentddm VERB --help says the rest; --version prints the version.", ""]
        return "\n".join(lines)


def build_parser() -> argparse.ArgumentParser:
    """The parser; the parsed namespace holds the chosen `Verb` under `verb`."""
    parser = _Parser(prog="latentddm", description=DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"latentddm {__version__}")
    verbs = parser.add_subparsers(
        required=True, metavar="VERB", dest="name", parser_class=_VerbParser
    )
    for verb in VERBS:
        _add_verb(verbs, verb)
    return parser


def _add_verb(verbs: argparse._SubParsersAction, verb: Verb) -> None:
    parser = verbs.add_parser(
        verb.name,
        help=verb.summary,
        description=verb.summary,
        epilog="\n".join(["examples:", *(f"  {example}" for example in verb.examples)]),
        formatter_class=_Formatter,
    )
    verb.add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print the outcome as one JSON object")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    parser.set_defaults(verb=verb)
