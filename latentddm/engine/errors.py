"""The errors that end a command; the command line turns each into an exit code."""

from __future__ import annotations

import signal

EXIT_FAILED, EXIT_WRONG_REQUEST, EXIT_SIGNAL = 1, 2, 128


class UserError(Exception):
    """An error in the request: a path, a key, a value. Exit code 2.

    The message is one sentence: the error, its place (file or key), the remedy.
    """


class JobError(Exception):
    """A failure of the work on a correct request: a full disk, a damaged shard. Exit code 1.

    The message is one sentence: the failure, its place, the remedy.
    """


def one_line(error: BaseException) -> str:
    """The message of an error of another library, without line breaks."""
    return " ".join(str(error).split())


class Interrupted(KeyboardInterrupt):
    """A stop by a signal, after the work so far was saved. Exit code 128 + the signal's number.

    A KeyboardInterrupt, not an `Exception`: handlers that continue after an error do not catch it.
    """

    def __init__(self, signal_number: int, saved: str) -> None:
        name = signal.Signals(signal_number).name
        super().__init__(f"{name}: {saved}; run the same command again to resume.")
        self.signal_number = signal_number
