"""Files that are written whole or not at all: temporary name, fsync, rename."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from latentddm.engine.errors import JobError, UserError

TEMPORARY_SUFFIX = ".partial"


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path for a file or a folder; rename it to `path` at the end of the block.

    After a crash at any moment `path` is either as it was or complete. A folder must not exist
    under its final name. Errors of the disk become one sentence that names the path.
    """
    path = Path(path)
    temporary = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove(temporary)
        yield temporary
        _sync_tree(temporary)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        _remove(temporary)
        raise disk_error(error, path) from error
    except BaseException:
        _remove(temporary)
        raise


def remove_leftovers(folder: Path, names: Iterable[str] = ("",)) -> None:
    """Remove what killed processes left in `folder` of files and folders whose name begins so."""
    starts = tuple(names)
    for path in folder.glob(f"*{TEMPORARY_SUFFIX}"):
        if path.name.startswith(starts) and not _belongs_to_the_living(path):
            _remove(path)


def remove_folder(path: Path) -> None:
    """Remove a folder so that no half of it is ever seen under its name."""
    doomed = _temporary(path.with_name(f"{path.name}.removed"))
    _remove(doomed)
    os.replace(path, doomed)
    _remove(doomed)


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path`, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, whole or not at all."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path` as indented JSON with a final newline, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from `path`; UserError if it is missing, torn or not an object."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; check the path.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} is not valid JSON ({error}); restore it or make it again."
        ) from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a {type(value).__name__}, not a JSON object.")
    return value


def sha256_of(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal; reads it in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def size_problem(path: Path, size: int) -> str | None:
    """What is wrong with the size of a file that should have `size` bytes, or None."""
    try:
        found = path.stat().st_size
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return None if found == size else f"has {found} bytes and should have {size}"


def disk_error(error: OSError, path: Path | str | None) -> JobError:
    """The sentence for an operating-system error while writing `path`."""
    path = path or "a file"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return JobError(f"The disk is full while writing {path}; free space and run again.")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return JobError(f"{path} cannot be written ({error.strerror}); choose another folder.")
    return JobError(f"Writing {path} failed: {error.strerror or error}.")


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` survive a power cut."""
    if os.name == "nt":  # Windows cannot open a folder for fsync
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_tree(path: Path) -> None:
    if path.is_dir():
        for child in path.iterdir():
            _sync_tree(child)
        sync_folder(path)
        return
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _temporary(path: Path) -> Path:
    return path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")


def _belongs_to_the_living(path: Path) -> bool:
    process = path.name.removesuffix(TEMPORARY_SUFFIX).rpartition(".")[2]
    if not process.isdigit() or int(process) == os.getpid():
        return False
    import psutil  # here: the command line needs this module for its errors alone

    return psutil.pid_exists(int(process))


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):  # whoever cleans up has another error to report
            path.unlink()
