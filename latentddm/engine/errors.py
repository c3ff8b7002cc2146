"""The two ways a command can end other than well; the command line turns them into exit codes."""

from __future__ import annotations


class RequestError(Exception):
    """What was asked for is wrong (a path, a key, a value). Exit code 2.

    The message is one sentence for the user: what is wrong, in which file or key, what to do.
    """


class WorkError(Exception):
    """The request was right and the work failed (a full disk, a damaged shard). Exit code 1.

    The message is one sentence for the user: what failed, where, what to do.
    """
