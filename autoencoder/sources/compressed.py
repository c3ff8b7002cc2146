"""Compressed tar shards, rewritten as plain ones, which have random access."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from autoencoder.sources.folder import list_files
from autoencoder.sources.formats import is_image
from autoencoder.sources.naming import is_hidden, natural_key, suffix
from autoencoder.sources.tar_members import read_members
from latentddm.engine.atomic_io import (
    atomic_path,
    make_folder,
    read_json,
    remove_leftovers,
    write_json,
)
from latentddm.engine.errors import JobError, UserError
from latentddm.engine.progress import Progress

_OPENERS: dict[str, Callable[..., Any]] = {
    ".tgz": gzip.open,
    ".tar.gz": gzip.open,
    ".tar.bz2": bz2.open,
    ".tar.xz": lzma.open,
}
_OTHER = (".gz", ".bz2", ".xz", ".zst")
_OTHER_TARS = (
    *(".tar.lz", ".tar.lz4", ".tar.lzma", ".tar.z", ".tar.zst"),
    *(".tbz", ".tbz2", ".txz", ".tzst"),
)
_DAMAGE = (EOFError, zlib.error, lzma.LZMAError)
_PIECE = 1 << 20  # bytes
_END = 1 << 16  # bytes at the end of a shard that tell it from others


def is_compressed(path: Path) -> bool:
    """Whether a path is a compressed file, or a folder with some and without images or tars."""
    if not path.is_dir():
        return path.name.lower().endswith((*_OPENERS, *_OTHER))
    if not _shards_in(path):
        return False
    return not any(is_image(name) or suffix(name) == ".tar" for name in list_files(path))


def refuse_compressed(path: Path, name: str) -> NoReturn:
    """UserError that names the command for a compressed file, or for a folder of some."""
    if path.is_dir() or _suffix(path) is not None:
        raise UserError(
            f"{name} is compressed, without random access; run `latentddm encode --images {name} "
            "--decompress FOLDER ...`, which first writes plain shards to FOLDER, once."
        )
    raise UserError(f"{name} is compressed, without random access; unpack it first.")


def unread_tars(folder: Path) -> list[str]:
    """The compressed tars in a folder of plain ones, without those that have a plain copy there."""
    endings = (*_OPENERS, *_OTHER_TARS)
    names = {path.name for path in folder.iterdir() if not is_hidden(path.name)}
    found = []
    for name in sorted(names, key=natural_key):
        ending = next((end for end in endings if name.lower().endswith(end)), None)
        if ending is not None and f"{name[: -len(ending)]}.tar" not in names:
            found.append(name)
    return found


def decompress_shards(paths: list[Path], folder: Path, show_progress: bool = True) -> list[Path]:
    """Plain copies of compressed shards in `folder`, in the same order; existing ones stay.

    paths: shards, or one folder of them. A copy appears under its name when it is complete, so that
    a second call after an interruption writes the missing ones. Beside it lies a record of its
    origin. UserError for a copy of another shard, or a folder with other tars or images; JobError
    for a damaged shard.
    """
    if len(paths) == 1 and paths[0].is_dir():
        paths = _shards_of(paths[0], folder)
    copies = [folder / _plain_name(path) for path in paths]
    if len(set(copies)) < len(copies):
        raise UserError(f"Two of the shards for {folder} have one name; rename one.")
    make_folder(folder)
    remove_leftovers(folder, [copy.name for copy in copies])
    for path, copy in zip(paths, copies, strict=True):
        if copy.exists():
            _check_origin(path, copy)
    with Progress(len(paths), "decompress", unit="shards", show=show_progress) as progress:
        for path, copy in zip(paths, copies, strict=True):
            if not copy.exists():
                write_json(_record(copy), _origin(path))  # first: no copy is without its record
                _decompress(path, copy)
            progress.update(1)
    return copies


def _shards_in(folder: Path) -> list[Path]:
    """The compressed tars in a folder that can be rewritten, in natural order."""
    found = [
        path
        for path in folder.iterdir()
        if _suffix(path) is not None and not is_hidden(path.name) and path.is_file()
    ]
    return sorted(found, key=lambda path: natural_key(path.name))


def _shards_of(source: Path, target: Path) -> list[Path]:
    """The shards in the folder `source`; UserError for none, or for tars or images beside them."""
    shards = _shards_in(source)
    if not shards:
        raise UserError(
            f"{source} holds no compressed tar ({', '.join(_OPENERS)}); give it without "
            "--decompress."
        )
    own = {(target / _plain_name(path)).resolve() for path in shards}
    others = [name for name in list_files(source) if is_image(name)]
    for path in source.iterdir():
        if path.name.lower().endswith((".tar", *_OTHER_TARS)) and path.resolve() not in own:
            others.append(path.name)
    if others:
        raise UserError(
            f"{source} also holds {min(others, key=natural_key)}, which --decompress leaves out; "
            f"move it away, or give '{source}/*{_suffix(shards[0])}' for the shards alone."
        )
    return shards


def _record(copy: Path) -> Path:
    return copy.with_name(f"{copy.name}.origin.json")


def _origin(path: Path) -> dict[str, Any]:
    """Path, size and a hash of the end of a compressed shard.

    All of the formats end in a checksum of the contents, so another shard has another end.
    """
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _END))
            end = hashlib.sha256(file.read()).hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be opened ({error.strerror}); check the path.") from error
    return {"path": str(path.resolve()), "bytes": size, "end": end}


def _check_origin(path: Path, copy: Path) -> None:
    """UserError if `copy` is not the plain copy of `path`. A shard may have been moved."""
    found = read_json(_record(copy)) if _record(copy).exists() else {}
    wanted = _origin(path)
    if all(found.get(name) == wanted[name] for name in ("bytes", "end")):
        return
    origin = "a shard that is not recorded"
    if found:
        origin = f"another shard ({found.get('path')}, {found.get('bytes')} bytes)"
    raise UserError(
        f"{copy} is a copy of {origin}, not of {path} ({wanted['bytes']} bytes); give --decompress "
        "another folder, or delete this copy."
    )


def _suffix(path: Path) -> str | None:
    """The suffix of a compressed tar that can be rewritten; None for any other name."""
    return next((ending for ending in _OPENERS if path.name.lower().endswith(ending)), None)


def _plain_name(path: Path) -> str:
    ending = _suffix(path)
    if ending is None:
        raise UserError(
            f"{path} is not a compressed tar ({', '.join(_OPENERS)}); give it without --decompress."
        )
    return path.name[: -len(ending)] + ".tar"


def _decompress(path: Path, copy: Path) -> None:
    opener = _OPENERS[str(_suffix(path))]
    try:
        source = opener(path, "rb")
    except OSError as error:
        raise UserError(f"{path} cannot be opened ({error.strerror}); check the path.") from error
    with source, atomic_path(copy) as temporary, open(temporary, "wb") as target:
        try:
            shutil.copyfileobj(source, target, _PIECE)
        except (*_DAMAGE, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:  # of the disk
                raise
            raise JobError(f"{path} is damaged ({error}); download it again.") from error
        target.flush()
        try:
            read_members(temporary)  # complete, before it has its name
        except JobError as error:
            raise JobError(str(error).replace(str(temporary), str(path))) from error
