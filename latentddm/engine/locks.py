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


def acquire_lock(lock: FileLock, timeout: float = -1) -> None:
    """Acquire a lock; filelock's Timeout after `timeout` seconds, JobError for one of the disk.

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
def locked(path: Path) -> Iterator[None]:
    """Hold the lock `path`, whose folder exists, for the block."""
    lock = FileLock(path)
    acquire_lock(lock)
    try:
        yield
    finally:
        lock.release()
