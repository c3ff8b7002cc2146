"""Webdataset tar shards of images: one index of all headers, then random access by offset.

Nothing is unpacked, and of each sample only the image and its `cls` or `json` member are read,
never a pickle.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from braceexpand import braceexpand

from autoencoder.sources.compressed import is_compressed, refuse_compressed, unread_tars
from autoencoder.sources.decoding import decode_image
from autoencoder.sources.folder import list_files
from autoencoder.sources.formats import describe_left_out, find_left_out, is_image
from autoencoder.sources.naming import describe_files, natural_key
from autoencoder.sources.protocol import SourceImage, UnreadableImage
from autoencoder.sources.tar_members import read_members, read_range
from autoencoder.sources.tar_samples import ABSENT, SampleKeys, group_members, unique_keys
from latentddm.engine.errors import JobError, UserError

_LINK = -1


class TarSource:
    """The images of tar shards in the order of the shards and of their members.

    Members of one base name form a sample: an image and optionally a label, in `cls` (an integer)
    or under "label" in `json`. The base name ends at the first dot, as in webdataset, or at the
    last one, with `sample_keys` "whole". Keys are the names of the image members, prefixed by the
    shard's name and a slash if a name occurs in two shards. Other samples and members are left out,
    except that a label without an image counts as an unreadable image.
    """

    def __init__(
        self, shards: Sequence[Path], name: str, sample_keys: SampleKeys = "webdataset"
    ) -> None:
        self.name = name
        self.shards = list(shards)
        members = [read_members(shard) for shard in self.shards]
        samples = [
            group_members(shard, found, sample_keys)
            for shard, found in zip(self.shards, members, strict=True)
        ]
        names = [member.name for group in members for member in group]
        self.left_out = find_left_out(names)
        if not any(sample.image is not ABSENT for group in samples for sample in group):
            if self.left_out:
                raise UserError(
                    f"{name} holds no image that can be read: {describe_left_out(self.left_out)}"
                )
            raise UserError(
                f"{name} holds no image in its tar shards: {describe_files(names)}; "
                "give shards with jpg, png, webp, avif, bmp, tif or gif members."
            )
        self._keys = unique_keys(self.shards, samples)
        # one row per sample: shard, then offset and size of image, cls and json
        self._places = np.array(
            [
                (shard, *(number for member in sample[1:] for number in member[1:]))
                for shard, group in enumerate(samples)
                for sample in group
            ],
            dtype=np.int64,
        )

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, index: int) -> str:
        return self._keys[index]

    def label(self, index: int) -> int | None:
        return self._label(index, self._attributes(index))

    def load(self, index: int) -> SourceImage:
        key = self.key(index)
        size = int(self._places[index, 2])
        if size == ABSENT.size:
            raise UnreadableImage(key, "the sample has a label and no image")
        if size == _LINK:
            raise UnreadableImage(key, "a link, not an image")
        image = decode_image(self._read(index, 0) or b"", key)
        attributes = self._attributes(index)
        return SourceImage(key, image, self._label(index, attributes), attributes)

    def _label(self, index: int, attributes: dict[str, Any] | None) -> int | None:
        data = self._read(index, 1)
        if data is None:
            return _json_label(attributes)
        try:
            return int(data)
        except ValueError as error:
            raise self._bad_label(index, "cls", "an integer") from error

    def _attributes(self, index: int) -> dict[str, Any] | None:
        data = self._read(index, 2)
        if data is None:
            return None
        try:
            value = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise self._bad_label(index, "json", "valid JSON") from error
        return value if isinstance(value, dict) else None

    def _read(self, index: int, part: int) -> bytes | None:
        """The contents of a sample's image (part 0), cls (1) or json (2) member; None without."""
        row = self._places[index].tolist()
        offset, size = row[1 + 2 * part : 3 + 2 * part]
        return read_range(self.shards[row[0]], offset, size) if size >= 0 else None

    def _bad_label(self, index: int, member: str, wanted: str) -> JobError:
        shard = self.shards[int(self._places[index, 0])]
        return JobError(
            f"{shard} holds a {member} member for {self.key(index)} that is not {wanted}; "
            "write the shard again."
        )


def is_tar(path: Path) -> bool:
    """Whether a path is a file with the suffix .tar."""
    return path.is_file() and path.suffix.lower() == ".tar"


def holds_shards(folder: Path) -> bool:
    """Whether a folder holds tar files."""
    return folder.is_dir() and any(folder.glob("*.tar"))


def open_shards(path: Path, name: str, sample_keys: SampleKeys = "webdataset") -> TarSource:
    """The source of one tar, or of a folder of tar shards in natural order.

    UserError for a folder that also holds loose images or compressed tars.
    """
    if path.is_file():
        return TarSource([path], name, sample_keys)
    if any(map(is_image, list_files(path))):
        raise UserError(
            f"{name} holds tar shards and loose images; give '{path / '*.tar'}' for the shards, "
            "or a folder with the images alone."
        )
    unread = unread_tars(path)
    if unread:
        raise UserError(
            f"{name} holds plain tar shards and {unread[0]}, which is compressed; unpack it, or "
            f"give '{path / '*.tar'}' for the plain shards alone."
        )
    shards = sorted(path.glob("*.tar"), key=lambda tar: natural_key(tar.name))
    return TarSource(shards, name, sample_keys)


def expand_pattern(reference: str, is_shard: Callable[[Path], bool] = is_tar) -> list[Path] | None:
    """The shards of a pattern with braces or wildcards; None for a reference without either.

    Braces keep their order; the matches of a wildcard are in natural order. UserError for a match
    that is not `is_shard`.
    """
    if not any(mark in reference for mark in "{*?["):
        return None
    try:
        patterns = list(braceexpand(reference))
    except ValueError as error:
        raise UserError(
            f"The braces in {reference} do not match; give a range such as {{000..003}}."
        ) from error
    paths: list[Path] = []
    for pattern in patterns:
        found = sorted(glob.glob(pattern, recursive=True), key=natural_key)
        if not found and not Path(pattern).exists():
            raise UserError(f"No file matches {pattern}; check the path.")
        paths.extend(Path(name) for name in found or [pattern])
    others = [path for path in paths if not is_shard(path)]
    if others and all(map(is_compressed, paths)):
        refuse_compressed(others[0], reference)
    if others:
        raise UserError(
            f"{others[0]}, matched by {reference}, is not a tar shard; narrow the pattern."
        )
    return paths


def _json_label(attributes: dict[str, Any] | None) -> int | None:
    label = (attributes or {}).get("label")
    return label if isinstance(label, int) and not isinstance(label, bool) else None
