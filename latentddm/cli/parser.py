"""The parser of the whole command line, built from the registry."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from latentddm.cli.registry import load_verbs
from latentddm.cli.verb import Verb
from latentddm.cli.versions import ShowVersions
from latentddm.engine.errors import UserError

DESCRIPTION = "Few-step latent image generators from a folder of pictures, with no teacher."


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Examples with their line breaks, and N as the placeholder of numbers."""

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        return (
            "N"
            if action.type in (int, float)
            else super()._get_default_metavar_for_optional(action)
        )


class _VerbParser(argparse.ArgumentParser):
    """A parser whose errors are UserErrors of one sentence.

    Changes to a config, key=value, may stand behind options too, where argparse takes none.
    """

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        parsed, unknown = super().parse_known_args(args, namespace)
        if hasattr(parsed, "overrides"):
            behind = [text for text in unknown if "=" in text and not text.startswith("-")]
            parsed.overrides = [*parsed.overrides, *behind]
            unknown = [text for text in unknown if text not in behind]
        return parsed, unknown

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see `{self.prog} --help`.")


class _Parser(_VerbParser):
    """The parser of the first argument, the verb; its help lists the verbs in their groups."""

    def __init__(self, groups: Mapping[str, Sequence[Verb]], **options: Any) -> None:
        super().__init__(**options)
        self.groups = groups

    def format_help(self) -> str:
        width = max(len(verb.name) for verbs in self.groups.values() for verb in verbs)
        lines = [self.format_usage().rstrip(), "", DESCRIPTION]
        for group, verbs in self.groups.items():
            lines += ["", f"{group}:"]
            lines += [f"  {verb.name:<{width}}  {verb.summary}" for verb in verbs]
        lines += ["", "Options of a verb: latentddm VERB --help; the version: --version.", ""]
        return "\n".join(lines)


def build_parser() -> argparse.ArgumentParser:
    """The parser; the parsed namespace has the chosen `Verb` under `verb`."""
    groups = load_verbs()
    parser = _Parser(groups, prog="latentddm", description=DESCRIPTION)
    parser.add_argument("--version", action=ShowVersions, help="versions, and the attention kernel")
    subparsers = parser.add_subparsers(
        required=True, metavar="VERB", dest="name", parser_class=_VerbParser
    )
    for verb in (verb for verbs in groups.values() for verb in verbs):
        _add_verb(subparsers, verb)
    return parser


def _add_verb(subparsers: argparse._SubParsersAction, verb: Verb) -> None:
    parser = subparsers.add_parser(
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
