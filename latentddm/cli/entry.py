"""`main`: runs one verb, prints its outcome, and turns errors into one sentence and an exit code.

Exit code 0: done; 1: the work failed; 2: the request was wrong; 128 + n: stopped by signal n (130:
Ctrl-C). The outcome goes to stdout, everything else to stderr.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from latentddm.cli.parser import build_parser
from latentddm.cli.verb import Verb
from latentddm.engine.atomic_io import disk_error
from latentddm.engine.cpu_threads import let_waiting_threads_sleep
from latentddm.engine.errors import (
    EXIT_FAILED,
    Interrupted,
    JobError,
    UserError,
    exit_code_of,
    unexpected,
)

OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory")
_log = logging.getLogger("latentddm")
RED, PLAIN = "\033[31m", "\033[0m"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    let_waiting_threads_sleep()  # no verb has imported torch yet
    # Its warnings about unsupported kernels are redundant: attention.py names the chosen kernel.
    logging.getLogger("xformers").setLevel(logging.ERROR)
    try:
        parsed = build_parser().parse_args(arguments)
    except UserError as error:
        _print_error(str(error))
        return exit_code_of(error)
    _start_logging()
    verb: Verb = parsed.verb
    try:
        with _thread_errors(parsed.debug):
            outcome = verb.run(parsed)
    except (Exception, KeyboardInterrupt) as error:
        if parsed.debug:
            raise
        return _fail(_sentence(error, verb), exit_code_of(error), parsed)
    if parsed.json:
        _print(json.dumps(outcome.values, ensure_ascii=False))
    else:
        _print(outcome.text)
    if outcome.failure is not None:
        _print_error(outcome.failure)
        return EXIT_FAILED
    return 0


def _sentence(error: BaseException, verb: Verb) -> str:
    """What an error says to the user."""
    if isinstance(error, UserError | JobError | Interrupted):
        return str(error)
    if isinstance(error, KeyboardInterrupt):
        return "Stopped; run the same command again to resume."
    if _is_out_of_memory(error):
        return f"Out of memory; lower {verb.memory}."
    if isinstance(error, OSError):  # of files not written through atomic_io: logs, events
        return str(disk_error(error, error.filename))
    *_, place = traceback.extract_tb(error.__traceback__)
    what = f"Unexpected error in {Path(place.filename).name}, line {place.lineno}"
    return str(unexpected(error, what))


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is Python's, CUDA's (a RuntimeError) or torch's CPU allocator's."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError | OSError) and any(sign in text for sign in OUT_OF_MEMORY)
    )


def _fail(sentence: str, code: int, parsed: argparse.Namespace) -> int:
    if parsed.json:
        _print(json.dumps({"error": sentence, "exit_code": code}, ensure_ascii=False))
    _print_error(sentence)
    return code


def _print(text: str) -> None:
    print(_shown(text, sys.stdout), flush=True)


def _shown(text: str, stream: TextIO) -> str:
    """The text with escapes for all, such as the names of files, that `stream` cannot encode."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _print_error(sentence: str) -> None:
    """One sentence on stderr after the program's name, which is red on a terminal."""
    coloured = sys.stderr.isatty() and "NO_COLOR" not in os.environ
    name = f"{RED}latentddm{PLAIN}" if coloured else "latentddm"
    print(_shown(f"{name}: {sentence}", sys.stderr), file=sys.stderr)


@contextmanager
def _thread_errors(debug: bool) -> Iterator[None]:
    """Errors in threads of other libraries, such as TensorBoard's, as one line of the log."""

    def log(failed: threading.ExceptHookArgs) -> None:
        name = failed.thread.name if failed.thread is not None else "a thread"
        reason = "".join(traceback.format_exception_only(failed.exc_type, failed.exc_value))
        _log.warning("%s failed: %s", name, " ".join(reason.split()))

    before = threading.excepthook
    threading.excepthook = before if debug else log
    try:
        yield
    finally:
        threading.excepthook = before


def _start_logging() -> None:
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("latentddm").setLevel(logging.INFO)
