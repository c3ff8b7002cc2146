"""Atomic writes of files and folders: temporary name, fsync, rename."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
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

    After a crash at any moment `path` is either unchanged or complete. A folder must not exist
    under its final name; the one around it must, for it is never made here: a job makes its folders
    once, with `make_folder`, and one that is missing later has vanished with its disk. JobError for
    an error of the disk; its message names the path.
    """
    path = Path(path)
    temporary = _temporary(path)
    try:
        _remove(temporary)
        yield temporary
        _sync_tree(temporary)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        _remove(temporary)
        raise disk_error(error, path) from error
    except BaseException as error:
        _remove(temporary)
        failure = _native_error(error, path)
        if failure is not None:
            raise failure from error
        raise


def _native_error(error: BaseException, path: Path) -> JobError | None:
    """The JobError for an error of safetensors while writing `path`; None for any other."""
    from safetensors import SafetensorError  # here, as it is needed after a failure alone

    if not isinstance(error, SafetensorError):
        return None
    number = re.search(r"os error (\d+)", str(error))
    code = int(number[1]) if number else 0
    return disk_error(OSError(code, os.strerror(code) if number else str(error)), path)


def make_folder(path: Path) -> None:
    """Make a folder and its missing parents; JobError for an error of the disk."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(error, path) from error


def remove_leftovers(folder: Path, names: Iterable[str] = ("",)) -> None:
    """Remove the temporary files and folders of killed processes from `folder`.

    names: beginnings of their names. Those of a process that is still alive stay.
    """
    starts = tuple(names)
    for path in folder.glob(f"*{TEMPORARY_SUFFIX}"):
        if path.name.startswith(starts) and not _writer_is_alive(path):
            _remove(path)


def remove_folder(path: Path) -> None:
    """Remove a folder; under its own name it is never incomplete."""
    removed = _temporary(path.with_name(f"{path.name}.removed"))
    _remove(removed)
    os.replace(path, removed)
    _remove(removed)


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically, as UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path` atomically, as indented JSON with a final newline.

    A file name that is not UTF-8 is written with JSON's own escapes, and read as it was.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; UserError if it is missing, truncated or not an object."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; check the path.") from None
    except OSError as error:
        raise JobError(f"{path} cannot be read ({error.strerror}); check the disk.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is not valid JSON ({error}); restore it or make it again."
        ) from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a {type(value).__name__}, not a JSON object; restore it.")
    return value


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal; read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def size_problem(path: Path, size: int) -> str | None:
    """The problem of a file that should have `size` bytes, as a predicate; None if it has them."""
    try:
        found = path.stat().st_size
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return None if found == size else f"has {found} bytes and should have {size}"


def disk_error(error: OSError, path: Path | str | None) -> JobError:
    """The JobError for an operating-system error while writing `path`."""
    path = path or "a file"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return JobError(f"The disk is full while writing {path}; free space and run again.")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return JobError(f"{path} cannot be written ({error.strerror}); choose another folder.")
    return JobError(f"Writing {path} failed ({error.strerror or error}); check the disk.")


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable: they survive a power cut."""
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


def _writer_is_alive(path: Path) -> bool:
    process = path.name.removesuffix(TEMPORARY_SUFFIX).rpartition(".")[2]
    if not process.isdigit() or int(process) == os.getpid():
        return False
    import psutil  # here, as the command line imports this module before it parses

    return psutil.pid_exists(int(process))


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):  # a clean-up must not hide the error that caused it
            path.unlink()
