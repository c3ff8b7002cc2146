"""A folder of loose image files, with all its subfolders."""

from __future__ import annotations

import os
from pathlib import Path

from autoencoder.sources.decoding import read_image_file
from autoencoder.sources.formats import describe_left_out, find_left_out, is_image
from autoencoder.sources.naming import (
    class_labels,
    describe_files,
    is_hidden,
    key_of,
    name_of,
    natural_key,
    suffix,
)
from autoencoder.sources.protocol import IndexedSource
from latentddm.engine.errors import UserError


class FolderSource(IndexedSource):
    """Image files under a folder in natural order; class subfolders give labels.

    Keys are those of the paths below the folder. Hidden files and files of other kinds are left
    out; those that look like pictures are counted in `left_out`.
    """

    def __init__(self, root: Path, name: str) -> None:
        self.root = root
        names = list_files(root)
        keys = sorted(map(key_of, filter(is_image, names)), key=natural_key)
        left_out = find_left_out(names)
        if left_out and not keys:
            raise UserError(
                f"{name} holds no image that can be read: {describe_left_out(left_out)}"
            )
        if not keys and any(suffix(found) == ".parquet" for found in names):
            raise UserError(f"{name} holds .parquet files and no image; give hf:{name}.")
        if not keys:
            raise UserError(
                f"{name} holds no image: {describe_files(names)}; give a folder of jpg, png, webp, "
                "avif, bmp, tif or gif files, a zip, tar shards or an LSUN lmdb folder."
            )
        super().__init__(name, keys, class_labels(keys), left_out)

    def read(self, index: int) -> bytes:
        key = self.key(index)
        return read_image_file(self.root / name_of(key), key)


def list_files(root: Path) -> list[str]:
    """Paths below `root`, with forward slashes, in no particular order; links are followed."""
    files: list[str] = []
    visited: set[tuple[int, int]] = set()
    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=_refuse):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in visited:  # a link to one of its parents
            subfolders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        subfolders[:] = sorted(name for name in subfolders if not is_hidden(name))
        prefix = Path(folder).relative_to(root).as_posix()
        prefix = "" if prefix == "." else prefix + "/"
        files.extend(prefix + name for name in names if not is_hidden(name))
    return files


def _refuse(error: OSError) -> None:
    raise UserError(
        f"The folder {error.filename} cannot be listed ({error.strerror}); make it readable or "
        "move it away."
    ) from error
