"""A fault at any boundary of a command: an end in time, one sentence, and nothing lost or left.

Afterwards the same command finishes with the same bytes as one that was never disturbed.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from boundaries import LIMIT, Boundary, Ended, Fault, happened, kinds_at, run
from commands import Command

pytestmark = pytest.mark.skipif(os.name == "nt", reason="faults are injected through a fork")
VERBS = (
    *("encode", "train", "train-autoencoder", "decode", "decode-webdataset", "sample"),
    *("evaluate", "export", "distill"),
)
ERRORS = (errno.ENOSPC, errno.EIO, errno.EROFS, "bug")
APPENDED = ("metrics.jsonl",)  # of a run in the making
SAMPLE = {"encode": 2, "train": 1, "sample": 1}  # faults in the default suite


class Undisturbed:
    """A command, the boundaries that it passes, and the files that it writes."""

    def __init__(self, command: Command, log: Path) -> None:
        self.command, self.log = command, log
        command.clean()
        ended, self.boundaries = run(command, command.root, log)
        assert ended.code == 0, ended.output
        self.files = command.written()
        assert self.files
        assert len(self.boundaries) > 10

    def problems(self, fault: Fault) -> list[str]:
        """All that is wrong after a fault, and after the same command once more."""
        command = self.command
        command.clean()
        ended, _ = run(command, command.root, self.log, fault)
        if not happened(self.log):
            return [f"not reached ({ended.code}): {ended.output}"]
        found = [*_after(ended, fault), *self._half_written(killed=fault.kind == "kill")]
        again, _ = run(command, command.root, self.log)
        if again.code != 0:
            found.append(f"the same command ends with {again.code}: {again.sentences}")
        elif (files := command.written()) != self.files:
            names = sorted(files.keys() ^ self.files.keys()) or [
                name for name in files if files[name] != self.files[name]
            ]
            found.append(f"the same command writes other files: {names}")
        found += [f"after the same command {left}" for left in again.leftovers]
        return [f"{fault}: {problem}" for problem in found]

    def _half_written(self, killed: bool) -> list[str]:
        """Files that are neither those of the undisturbed command nor temporary ones of a kill."""
        return [
            f"{name} is left"
            for name, digest in self.command.written().items()
            if (self.files.get(name, digest) != digest and Path(name).name not in APPENDED)
            or (".partial" in name and not killed)
        ]


def _after(ended: Ended, fault: Fault) -> list[str]:
    found = list(ended.leftovers)
    if ended.code is None:
        found.append(f"it hangs for {LIMIT} s: {ended.output}")
    elif fault.kind == "kill":
        if fault.at.process == 0 and ended.code != -9:
            found.append(f"the killed command ends with {ended.code}")
    elif ended.code not in (0, 1, 2):
        found.append(f"it ends with {ended.code}: {ended.output}")
    if fault.kind != "kill" or fault.at.process:
        if "Traceback" in ended.output:
            found.append(f"a traceback: {ended.output}")
        if ended.code in (1, 2) and len(ended.sentences) != 1:
            found.append(f"{len(ended.sentences)} sentences: {ended.output}")
    return found


def check(undisturbed: Undisturbed, faults: list[Fault]) -> None:
    problems = [text for fault in faults for text in undisturbed.problems(fault)]
    assert not problems, "\n".join(problems)


def spread(boundaries: list[Boundary], count: int) -> list[Boundary]:
    """`count` of the boundaries, evenly."""
    return [boundaries[(2 * part + 1) * len(boundaries) // (2 * count)] for part in range(count)]


@pytest.mark.parametrize("verb", SAMPLE)
def test_a_fault_ends_the_command_and_the_same_command_finishes(
    verb: str, commands: dict[str, Command], tmp_path: Path
) -> None:
    undisturbed = Undisturbed(commands[verb], tmp_path / "log")
    check(undisturbed, kinds_at(spread(undisturbed.boundaries, SAMPLE[verb]), ERRORS))


@pytest.mark.slow
@pytest.mark.parametrize("kinds", [ERRORS, ("kill",)], ids=["errors", "kills"])
@pytest.mark.parametrize("verb", VERBS)
def test_a_fault_at_every_boundary(
    verb: str,
    kinds: tuple[str | int, ...],
    commands: dict[str, Command],
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    undisturbed = Undisturbed(commands[verb], tmp_path / "log")
    if kinds == ("kill",):
        faults = [Fault(boundary, "kill") for boundary in undisturbed.boundaries]
    else:
        faults = kinds_at(undisturbed.boundaries, kinds)
    record_property("faults", len(faults))
    check(undisturbed, faults)
