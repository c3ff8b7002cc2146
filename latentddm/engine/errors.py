"""The ways a command can end other than well; the command line turns them into exit codes."""

from __future__ import annotations

import signal

EXIT_FAILED, EXIT_WRONG_REQUEST, EXIT_SIGNAL = 1, 2, 128


class UserError(Exception):
    """What was asked for is wrong (a path, a key, a value). Exit code 2.

    The message is one sentence for the user: what is wrong, in which file or key, what to do.
    """


class JobError(Exception):
    """The request was right and the work failed (a full disk, a damaged shard). Exit code 1.

    The message is one sentence for the user: what failed, where, what to do.
    """


class Interrupted(KeyboardInterrupt):
    """A signal asked for a stop, and all that was done is saved. Exit code 128 + its number.

    Like Ctrl-C it is no `Exception`, so that whatever goes on after errors does not go on.
    """

    def __init__(self, signal_number: int, saved: str) -> None:
        name = signal.Signals(signal_number).name
        super().__init__(f"{name}: {saved}; run the same command again to go on.")
        self.signal_number = signal_number
