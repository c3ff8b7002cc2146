"""Locks between processes, on file systems with and without them."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from latentddm.engine.atomic_io import disk_error

_WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)
_log = logging.getLogger("latentddm")


def _acquire(lock: FileLock, timeout: float) -> None:
    """Acquire a lock; Timeout after `timeout` seconds, JobError for an error of the disk.

    A file system without locks (some of Lustre and NFS) is a warning: all files are still written
    whole or not at all, but two commands on one folder do not notice each other.
    """
    try:
        lock.acquire(timeout=timeout)
    except TimeoutError:
        raise
    except OSError as error:
        if error.errno not in _WITHOUT_LOCKS:
            raise disk_error(error, lock.lock_file) from error
        _log.warning(
            "the file system of %s has no locks (%s); start no second command on this folder",
            Path(lock.lock_file).parent,
            error.strerror,
        )


@contextmanager
def locked(path: Path, timeout: float = -1) -> Iterator[None]:
    """Hold the lock `path`, whose folder exists, for the block.

    filelock's Timeout after `timeout` seconds of waiting; below 0 there is no end.
    """
    lock = FileLock(path)
    _acquire(lock, timeout)
    try:
        yield
    finally:
        lock.release()
