"""SHA-256 of the files of a run, each hashed once by the process that trains it."""

from __future__ import annotations

from pathlib import Path

from latentddm.engine.atomic_io import sha256_of


class KnownDigests:
    """SHA-256 of files, in hexadecimal: a file is read again only if its size or time changed.

    A save looks at every checkpoint that it keeps; without this memory it would read all of them.
    Damage that leaves size and time as they were is found by the next process, which knows nothing.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], tuple[int, int, str]] = {}

    def __call__(self, path: Path) -> str:
        found = path.stat()
        file = (found.st_dev, found.st_ino)  # the same after the checkpoint got its name
        size, changed, digest = self._known.get(file, (-1, -1, ""))
        if (size, changed) != (found.st_size, found.st_mtime_ns):
            digest = sha256_of(path)
            self._known[file] = (found.st_size, found.st_mtime_ns, digest)
        return digest
