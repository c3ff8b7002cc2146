"""The errors that end a command, and the exit code of each."""

from __future__ import annotations

import signal

EXIT_FAILED, EXIT_WRONG_REQUEST, EXIT_SIGNAL = 1, 2, 128
# Schedulers such as SLURM send SIGUSR1 ahead of a preemption; Windows has none.
STOPPING = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name)
)
"""The signals after which work is saved and stopped."""


class UserError(Exception):
    """An error in the request: a path, a key, a value. Exit code 2.

    The message is one sentence: the error, its place (file or key), the remedy.
    """


class JobError(Exception):
    """A failure of the work on a correct request: a full disk, a damaged shard. Exit code 1.

    The message is one sentence: the failure, its place, the remedy.
    """


def one_line(error: BaseException, limit: int = 300) -> str:
    """The message of an error of another library, without line breaks, of `limit` characters."""
    text = " ".join(str(error).split())
    return text if len(text) <= limit else f"{text[:limit]} ..."


def unexpected(error: BaseException, what: str) -> JobError:
    """The JobError for an error that no code expects. what: a clause on the failed work."""
    reason = ": ".join(part for part in (type(error).__name__, one_line(error)) if part)
    return JobError(f"{what} ({reason}); run again with --debug for the traceback.")


class Interrupted(KeyboardInterrupt):
    """A stop by a signal, after the work so far was saved. Exit code 128 + the signal's number.

    A KeyboardInterrupt, not an `Exception`: handlers that continue after an error do not catch it.
    """

    def __init__(self, signal_number: int, saved: str) -> None:
        name = signal.Signals(signal_number).name
        super().__init__(f"{name}: {saved}; run the same command again to resume.")
        self.signal_number = signal_number


def exit_code_of(error: BaseException) -> int:
    """The exit code of a command that an error has ended."""
    if isinstance(error, UserError):
        return EXIT_WRONG_REQUEST
    if isinstance(error, Interrupted):
        return EXIT_SIGNAL + error.signal_number
    if isinstance(error, KeyboardInterrupt):
        return EXIT_SIGNAL + signal.SIGINT
    return EXIT_FAILED
