"""A verb of the command line, and its outcome."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """The result of a verb: `text` for people, `values` (plain JSON values) for `--json`.

    failure: one sentence if the work was done and a defect was found; exit code 1.
    """

    text: str
    values: dict[str, Any] = field(default_factory=dict)
    failure: str | None = None


@dataclass(frozen=True)
class Verb:
    """One verb of the command line.

    summary: one line, for the list of verbs and the verb's own help. examples: whole commands.
    memory: the options or keys to lower when out of memory.
    """

    name: str
    summary: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], Outcome]
    examples: tuple[str, ...]
    memory: str = "--batch-size"
