"""The help of every verb is recorded in cli_help.txt, so that a change to it is seen in review.

Run this file to write the record again: python tests/latentddm/cli/test_cli_help.py
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from latentddm import cli
from latentddm.cli import main
from latentddm.cli.arguments import find_config
from latentddm.cli.parser import build_parser
from latentddm.cli.registry import GROUPS, load_verbs
from latentddm.engine.atomic_io import write_text

RECORD = Path(__file__).with_name("cli_help.txt")
HEADING = "=== latentddm {}--help\n"
LONGEST = 40  # lines of one verb's help
HEAVY = ("torch", "diffusers", "accelerate", "numpy", "PIL", "omegaconf")
VERBS = [verb for verbs in load_verbs().values() for verb in verbs]


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
        "The help texts have changed; if that is intended, run: "
        "python tests/latentddm/cli/test_cli_help.py"
    )


def test_every_verb_has_the_name_of_its_module_examples_and_a_short_help() -> None:
    modules = [name for names in GROUPS.values() for name in names]
    assert [verb.name.replace("-", "_") for verb in VERBS] == modules
    assert len(set(modules)) == len(modules)
    texts = current_help()
    for verb in VERBS:
        text = texts[HEADING.format(f"{verb.name} ")]
        assert len(text.splitlines()) <= LONGEST, verb.name
        assert f"  {verb.name} " in texts[HEADING.format("")]
        assert f"latentddm {verb.name}" in verb.examples[0]
        assert all(example in text for example in verb.examples)


def test_examples_can_be_parsed_and_name_configs_that_exist() -> None:
    for verb in VERBS:
        for example in verb.examples:
            command = example.split(" > ")[0].partition("latentddm ")[2]
            parsed = build_parser().parse_args(shlex.split(command))
            assert parsed.verb in VERBS
            if hasattr(parsed, "config"):
                assert find_config(parsed.config).is_file()


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion_has_every_verb_and_option(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("shtab", reason="pip install shtab")
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for verb in VERBS:
        assert verb.name in script
    assert "churn" in script


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["smaple"]])
def test_help_and_a_wrong_command_are_instant(arguments: list[str]) -> None:
    """They import nothing heavy."""
    program = f"""
import sys
from latentddm.cli import main
try:
    main({arguments})
except SystemExit:
    pass
print("heavy:", [name for name in {HEAVY} if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "heavy: []"


COUNT = """
import argparse
from latentddm.cli.verb import Outcome, Verb
from latentddm.engine.errors import UserError

def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", nargs="*")

def _run(arguments: argparse.Namespace) -> Outcome:
    if not arguments.words:
        raise UserError("words is empty; give one at least.")
    return Outcome(f"{len(arguments.words)} words", {"words": len(arguments.words)})

VERB = Verb("count-words", "Count words.", _add_arguments, _run, ("latentddm count-words a b",))
"""


def test_one_more_verb_is_one_file_and_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "count_words.py").write_text(COUNT)
    monkeypatch.setattr(cli, "__path__", [*cli.__path__, str(tmp_path)])  # a file in cli/
    monkeypatch.setitem(GROUPS, "train", ["count_words", *GROUPS["train"]])  # the line
    assert main(["count-words", "a", "b"]) == 0
    assert capsys.readouterr().out == "2 words\n"
    assert main(["count-words", "a", "b", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"words": 2}
    assert main(["count-words"]) == 2
    assert capsys.readouterr().err == "latentddm: words is empty; give one at least.\n"
    listed = build_parser().format_help().partition("train:\n")[2].splitlines()[0]
    assert listed.split() == ["count-words", "Count", "words."]


if __name__ == "__main__":
    write_text(RECORD, "".join(heading + text + "\n" for heading, text in current_help().items()))
