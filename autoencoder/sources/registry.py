"""Image sources by reference: two registries, one line per source.

A reference is either `PREFIX` or `PREFIX:...`, whose source is in PREFIXES, or names local files or
a URL, whose source is the first of PATHS with a true test of the path. Several files at once (a
pattern, or a URL with braces) are tar shards.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from autoencoder.remote import is_remote
from autoencoder.sources.archive import ZipSource, is_zip
from autoencoder.sources.compressed import decompress_shards, is_compressed, refuse_compressed
from autoencoder.sources.folder import FolderSource
from autoencoder.sources.formats import describe_left_out
from autoencoder.sources.huggingface import is_saved_dataset, open_dataset, open_saved
from autoencoder.sources.lsun import LsunSource, is_lmdb
from autoencoder.sources.naming import key_of, public_name
from autoencoder.sources.portraits import parse_portraits
from autoencoder.sources.protocol import ImageSource, left_out
from autoencoder.sources.remote import fetch_archives
from autoencoder.sources.tar_samples import SampleKeys
from autoencoder.sources.tar_shards import (
    TarSource,
    expand_pattern,
    holds_shards,
    is_tar,
    open_shards,
)
from latentddm.engine.errors import UserError

PREFIXES: dict[str, Callable[[str, int | None], ImageSource]] = {
    "portraits": parse_portraits,
    "hf": open_dataset,
}
"""Openers by prefix: (reference, size) -> source."""

PATHS: list[tuple[Callable[[Path], bool], Callable[[Path, str], ImageSource]]] = [
    (is_zip, ZipSource),
    (is_tar, open_shards),
    (is_lmdb, LsunSource),
    (is_saved_dataset, open_saved),
    (holds_shards, open_shards),
    (is_compressed, refuse_compressed),
    (Path.is_dir, FolderSource),
]
"""Pairs of a test and an opener, (path, name) -> source; the first true test decides."""

_log = logging.getLogger("latentddm")


def open_source(
    reference: str | Path,
    size: int | None = None,
    *,
    sample_keys: SampleKeys = "webdataset",
    decompress: str | Path | None = None,
) -> ImageSource:
    """The image source of a reference.

    reference: a folder of images, a zip, one tar, a folder of tar shards, a pattern of tar shards
    (braces or wildcards), an LSUN lmdb folder, a folder of save_to_disk,
    `hf:PLACE[:CONFIG][:SPLIT][?OPTIONS]`, `portraits[:count[:seed]]`, or the URL of a zip, a tar or
    tar shards (braces). size: pixels a side of sources that draw their images. sample_keys: "whole"
    for samples of tar shards whose names hold dots. decompress: a folder for plain copies of
    compressed tar shards. UserError for a wrong reference, JobError for damage.
    """
    text = str(reference)
    name = key_of(public_name(text))
    prefix = text.partition(":")[0]
    if prefix in PREFIXES:
        if decompress is not None:
            raise UserError(f"{name} has no compressed tar shards; give it without --decompress.")
        return PREFIXES[prefix](text, size)
    if decompress is None:
        paths = _local_paths(text)
    else:
        paths = decompress_shards(_local_paths(text, is_compressed), Path(decompress))
    if len(paths) > 1:
        source: ImageSource = TarSource(paths, name, sample_keys)
    elif sample_keys != "webdataset" and (is_tar(paths[0]) or holds_shards(paths[0])):
        source = open_shards(paths[0], name, sample_keys)
    else:
        source = _open_path(paths[0], name)
    if left_out(source):
        _log.warning("%s: %s", name, describe_left_out(left_out(source)))
    return source


def _open_path(path: Path, name: str) -> ImageSource:
    for matches, opener in PATHS:
        if matches(path):
            return opener(path, name)
    raise UserError(
        f"{name} is a file of an unknown type; give a folder of images, a zip or tar shards."
    )


def _local_paths(reference: str, is_shard: Callable[[Path], bool] = is_tar) -> list[Path]:
    """The files of a path, of a pattern, or of a URL after their download; at least one."""
    if is_remote(reference):
        return fetch_archives(reference)
    path = Path(reference).expanduser()
    paths = [path] if path.exists() else expand_pattern(str(path), is_shard)
    if not paths:
        raise UserError(
            f"{reference} does not exist; give a folder of images, a zip or tar shards."
        )
    return paths
