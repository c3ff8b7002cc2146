"""An LSUN category: a folder with an lmdb database of image files."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from autoencoder.sources.naming import key_of
from autoencoder.sources.protocol import IndexedSource, PerProcess
from latentddm.engine.errors import JobError, UserError

DATABASE = "data.mdb"

# lmdb allows one open handle per database and process; two sources may read the same database
_open_databases: WeakValueDictionary[str, Any] = WeakValueDictionary()


def _close_inherited() -> None:
    """After a fork: close the parent's handles, which are invalid here and prevent new ones."""
    for database in list(_open_databases.values()):
        database.close()
    _open_databases.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_inherited)


def is_lmdb(folder: Path) -> bool:
    """Whether a folder holds an lmdb database."""
    return (folder / DATABASE).is_file()


class LsunSource(IndexedSource):
    """The values of an lmdb database in the order of its keys."""

    def __init__(self, folder: Path, name: str) -> None:
        self._database = PerProcess(partial(open_database, folder))
        with self._database.get().begin() as transaction:
            self._raw_keys = list(transaction.cursor().iternext(keys=True, values=False))
        if not self._raw_keys:
            raise UserError(f"The database {folder / DATABASE} is empty; download it again.")
        keys = [key_of(key.decode("utf-8", "surrogateescape")) for key in self._raw_keys]
        super().__init__(name, keys)

    def read(self, index: int) -> bytes:
        with self._database.get().begin() as transaction:
            return bytes(transaction.get(self._raw_keys[index]) or b"")


def open_database(folder: Path) -> Any:
    """Open an lmdb folder for reading; JobError for a damaged or truncated database."""
    try:
        import lmdb
    except ImportError:
        raise UserError(
            "Reading an lmdb database needs the lmdb package; run `pip install lmdb`."
        ) from None
    place = os.path.realpath(folder)
    database = _open_databases.get(place)
    if database is not None:
        return database
    file = folder / DATABASE
    try:
        database = lmdb.open(
            str(folder), readonly=True, lock=False, readahead=False, meminit=False, create=False
        )
    except lmdb.Error as error:
        raise JobError(f"{file} cannot be opened ({error}); download it again.") from error
    # lmdb maps the file: access to a page behind the end of a truncated one kills the process
    if (database.info()["last_pgno"] + 1) * database.stat()["psize"] > file.stat().st_size:
        raise JobError(f"{file} is truncated: its last page is missing; download it again.")
    _open_databases[place] = database
    return database
