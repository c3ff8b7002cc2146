"""A zip of image files, read in place."""

from __future__ import annotations

import zipfile
from functools import partial
from pathlib import Path

from autoencoder.sources.formats import describe_left_out, find_left_out, is_image
from autoencoder.sources.naming import (
    class_labels,
    describe_files,
    is_hidden,
    key_of,
    name_of,
    natural_key,
)
from autoencoder.sources.protocol import IndexedSource, PerProcess, UnreadableImage
from latentddm.engine.errors import JobError, UserError

LARGEST_MEMBER = 1 << 30  # bytes after decompression; an image file never needs 1 GiB


class ZipSource(IndexedSource):
    """Image members of a zip in natural order; class subfolders give labels.

    Keys are those of the member names. within: the folder of the archive whose members are read.
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
            raise JobError(f"{name} holds several members of one name; write the zip again.")
        keys = sorted(map(key_of, filter(is_image, names)), key=natural_key)
        left_out = find_left_out(names)
        if left_out and not keys:
            raise UserError(
                f"{name} holds no image that can be read: {describe_left_out(left_out)}"
            )
        if not keys:
            raise UserError(
                f"{name} holds no image: {describe_files(names)}; give a zip of image files."
            )
        super().__init__(name, keys, class_labels(keys), left_out)
        self._archive = PerProcess(partial(open_zip, path))

    def read(self, index: int) -> bytes:
        key = self.key(index)
        archive, name = self._archive.get(), name_of(key)
        if archive.getinfo(name).file_size > LARGEST_MEMBER:
            raise UnreadableImage(key, "the file is larger than 1 GiB")
        try:
            return archive.read(name)
        except MemoryError:
            raise
        except OSError as error:
            if error.errno is None:  # of a decompressor
                raise UnreadableImage(key, f"damaged in the zip: {error}") from error
            raise JobError(
                f"{self.path} cannot be read ({error.strerror}); check the disk and run again."
            ) from error
        except Exception as error:  # the errors of all decompressors pass through zipfile
            raise UnreadableImage(key, f"damaged in the zip: {error}") from error


def is_zip(path: Path) -> bool:
    """Whether a path is a file with the suffix .zip."""
    return path.is_file() and path.suffix.lower() == ".zip"


def open_zip(path: Path) -> zipfile.ZipFile:
    """Open a zip for reading; JobError if it is damaged, UserError if it cannot be opened."""
    try:
        return zipfile.ZipFile(path)
    except OSError as error:
        raise UserError(f"{path} cannot be opened ({error.strerror}); check the path.") from error
    except MemoryError:
        raise
    except Exception as error:  # zipfile raises errors of many kinds on torn directories
        raise JobError(
            f"{path} is not a complete zip ({error}); download or write it again."
        ) from error
