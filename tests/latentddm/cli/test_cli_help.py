"""What every verb says of itself is on record: a change to it is meant, and seen in review.

Run this file to write the record again: python tests/latentddm/test_cli_help.py
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from latentddm.cli import main
from latentddm.cli.parser import build_parser
from latentddm.cli.registry import GROUPS, VERBS
from latentddm.engine.atomic_io import write_text

RECORD = Path(__file__).with_name("cli_help.txt")
HEADING = "=== latentddm {}--help\n"
LONGEST = 40  # lines of one verb's help


def current_help() -> dict[str, str]:
    """The help texts by heading, at a width of 100."""
    with mock.patch.dict(os.environ, COLUMNS="100", NO_COLOR="1"):
        parser = build_parser()
        texts = {HEADING.format(""): parser.format_help()}
        for verb in VERBS:
            texts[HEADING.format(f"{verb.name} ")] = verb_parser(parser, verb.name).format_help()
    return texts


def verb_parser(parser: argparse.ArgumentParser, name: str) -> argparse.ArgumentParser:
    (verbs,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return verbs.choices[name]


def test_help_is_as_recorded() -> None:
    """Line breaks aside, which differ between versions of Python."""
    recorded = RECORD.read_text(encoding="utf-8")
    now = "".join(heading + text + "\n" for heading, text in current_help().items())
    assert recorded.split() == now.split(), (
        "The help texts have changed; if that is meant, run: "
        "python tests/latentddm/test_cli_help.py"
    )


def test_every_verb_is_in_one_group_has_examples_and_is_short() -> None:
    assert len({verb.name for verb in VERBS}) == len(VERBS) == sum(map(len, GROUPS.values()))
    texts = current_help()
    for verb in VERBS:
        text = texts[HEADING.format(f"{verb.name} ")]
        assert len(text.splitlines()) <= LONGEST, verb.name
        assert f"  {verb.name} " in texts[HEADING.format("")]
        assert f"latentddm {verb.name}" in verb.examples[0]
        assert all(example in text for example in verb.examples)


def test_examples_can_be_parsed() -> None:
    """An example that the parser refuses would be worse than none."""
    for verb in VERBS:
        for example in verb.examples:
            command = example.split(" > ")[0].partition("latentddm ")[2]
            assert build_parser().parse_args(shlex.split(command)).verb in VERBS


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion_knows_every_verb_and_option(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("shtab", reason="pip install shtab")
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for verb in VERBS:
        assert verb.name in script
    assert "churn" in script


def test_help_imports_nothing_heavy() -> None:
    """Help and completion must be instant."""
    program = "import sys; from latentddm.cli.parser import build_parser; build_parser(); " + (
        "sys.exit(','.join(m for m in ('torch', 'diffusers', 'numpy', 'PIL') if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stderr.strip() == "", done.stderr


if __name__ == "__main__":
    write_text(RECORD, "".join(heading + text + "\n" for heading, text in current_help().items()))
