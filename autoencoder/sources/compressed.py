"""Compressed tar shards, rewritten as plain ones, which have random access."""

from __future__ import annotations

import bz2
import gzip
import lzma
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from autoencoder.sources.folder import list_files
from autoencoder.sources.formats import is_image
from autoencoder.sources.naming import natural_key, suffix
from autoencoder.sources.tar_members import read_members
from latentddm.engine.atomic_io import atomic_path, make_folder, remove_leftovers
from latentddm.engine.errors import JobError, UserError
from latentddm.engine.progress import Progress

_OPENERS: dict[str, Callable[..., Any]] = {
    ".tgz": gzip.open,
    ".tar.gz": gzip.open,
    ".tar.bz2": bz2.open,
    ".tar.xz": lzma.open,
}
_OTHER = (".gz", ".bz2", ".xz", ".zst")
_DAMAGE = (EOFError, zlib.error, lzma.LZMAError)
_PIECE = 1 << 20  # bytes


def is_compressed(path: Path) -> bool:
    """Whether a path is a compressed file, or a folder with some and without images or tars."""
    if not path.is_dir():
        return path.name.lower().endswith((*_OPENERS, *_OTHER))
    if not any(_suffix(entry) for entry in path.iterdir()):
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


def decompress_shards(paths: list[Path], folder: Path, show_progress: bool = True) -> list[Path]:
    """Plain copies of compressed shards in `folder`, in the same order; existing ones stay.

    paths: shards, or one folder of them. A copy appears under its name when it is complete, so that
    a second call after an interruption writes the missing ones. JobError for a damaged shard.
    """
    if len(paths) == 1 and paths[0].is_dir():
        found = sorted(paths[0].iterdir(), key=lambda path: natural_key(path.name))
        paths = [path for path in found if _suffix(path)]
    copies = [folder / _plain_name(path) for path in paths]
    if len(set(copies)) < len(copies):
        raise UserError(f"Two of the shards for {folder} have one name; rename one.")
    make_folder(folder)
    remove_leftovers(folder, [copy.name for copy in copies])
    with Progress(len(paths), "decompress", unit="shards", show=show_progress) as progress:
        for path, copy in zip(paths, copies, strict=True):
            if not copy.exists():
                _decompress(path, copy)
            progress.update(1)
    return copies


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
