"""Shared by the tools: exit codes and types of options."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from latentddm.engine.errors import Interrupted, JobError, UserError, exit_code_of

Item = TypeVar("Item")


def exit_code(work: Callable[[], None]) -> int:
    """Run `work`; 0: done, 1: it failed, 2: the request was wrong, 128 + n: stopped by signal n.

    The error message goes to stderr. After a signal everything done so far is saved.
    """
    try:
        work()
    except (UserError, JobError, Interrupted) as error:
        print(error, file=sys.stderr)
        return exit_code_of(error)
    except KeyboardInterrupt as error:
        print("Stopped; run the same command again to go on.", file=sys.stderr)
        return exit_code_of(error)
    return 0


def folder_of_runs(text: str) -> Path:
    """The argparse type of a folder whose runs are named to compare.py: NAME=RUN,RUN@IMAGES:..."""
    if any(sign in text for sign in "@:,"):
        raise argparse.ArgumentTypeError(f"{text!r} has one of @ : , in its name; choose another")
    return Path(text)


def list_of(kind: Callable[[str], Item]) -> Callable[[str], tuple[Item, ...]]:
    """The argparse type of an option with several values, separated by commas."""

    def read(text: str) -> tuple[Item, ...]:
        try:
            return tuple(kind(part) for part in text.split(","))
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r} is no list with commas: {error}") from None

    return read
