"""A zip of image files, read in place."""

from __future__ import annotations

import zipfile
from functools import partial
from pathlib import Path

from autoencoder.sources.naming import (
    class_labels,
    is_hidden,
    is_image,
    natural_key,
    what_it_holds,
)
from autoencoder.sources.protocol import IndexedSource, PerProcess, UnreadableImage
from latentddm.engine.errors import JobError, UserError

LARGEST_MEMBER = 1 << 30  # a zip member says how far it will grow; an image never needs 1 GiB


class ZipSource(IndexedSource):
    """Image members of a zip in natural order; class subfolders give labels.

    Keys are member names. `within` keeps only what lies below one folder of the archive.
    """

    def __init__(self, path: Path, name: str, within: str = "") -> None:
        self.path = path
        with open_zip(path) as archive:
            members = [
                member
                for member in archive.infolist()
                if member.filename.startswith(within)
                and not member.is_dir()
                and not is_hidden(member.filename)
            ]
        if any(member.flag_bits & 1 for member in members):
            raise UserError(f"{name} is encrypted; unpack it and give the folder.")
        names = [member.filename for member in members]
        if len(set(names)) < len(names):
            raise JobError(f"{name} holds several members of one name; make the zip again.")
        keys = sorted(filter(is_image, names), key=natural_key)
        if not keys:
            raise UserError(
                f"{name} holds no image: {what_it_holds(names)}; give a zip of image files."
            )
        super().__init__(name, keys, class_labels(keys))
        self._archive = PerProcess(partial(open_zip, path))

    def read(self, index: int) -> bytes:
        key = self.key(index)
        archive = self._archive.get()
        if archive.getinfo(key).file_size > LARGEST_MEMBER:
            raise UnreadableImage(key, "the file is larger than 1 GiB")
        try:
            return archive.read(key)
        except MemoryError:
            raise
        except Exception as error:  # zipfile lets errors of every decompressor through
            raise UnreadableImage(key, f"damaged in the zip: {error}") from error


def open_zip(path: Path) -> zipfile.ZipFile:
    """Open a zip for reading; JobError if it is damaged, UserError if it cannot be opened."""
    try:
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise JobError(
            f"{path} is not a whole zip ({error}); download or write it again."
        ) from error
    except OSError as error:
        raise UserError(f"{path} cannot be opened ({error.strerror}); check the path.") from error
