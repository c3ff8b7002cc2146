"""Images from wherever they lie: the public face of the sources, the crop and the loading.

source = open_source("faces.zip")
for item in iterate_pixels(source, range(len(source)), Preprocessing(size=256), workers=4): ...
"""

from __future__ import annotations

from pathlib import Path

from autoencoder.loading import LoadedPixels, iterate_pixels, read_pixels
from autoencoder.preprocessing import Preprocessing
from autoencoder.remote import is_remote
from autoencoder.sources.archive import ZipSource
from autoencoder.sources.folder import FolderSource, list_files
from autoencoder.sources.huggingface import PREFIX, HuggingFaceSource, is_saved_dataset
from autoencoder.sources.lsun import DATABASE, LsunSource
from autoencoder.sources.naming import is_image, natural_key, public_name
from autoencoder.sources.portraits import parse_portraits
from autoencoder.sources.protocol import ImageSource, SourceImage, UnreadableImage
from autoencoder.sources.remote import fetch_archives
from autoencoder.sources.selection import Selection, select_at_random
from autoencoder.sources.tar_shards import TarSource, expand_pattern
from latentddm.engine.errors import UserError

__all__ = [
    "ImageSource",
    "LoadedPixels",
    "Preprocessing",
    "Selection",
    "SourceImage",
    "UnreadableImage",
    "iterate_pixels",
    "open_source",
    "read_pixels",
    "select_at_random",
]


def open_source(reference: str | Path, size: int | None = None) -> ImageSource:
    """Open a source of images.

    `reference` is a folder of images, a zip, one tar, a folder of tar shards, a pattern of tar
    shards (braces or wildcards), an LSUN lmdb folder, `hf:owner/name[:split]`, a folder written
    by save_to_disk, `portraits[:count[:seed]]`, or the URL of a zip, a tar or tar shards (braces).
    `size` is a hint: portraits are drawn so large. UserError says what is wrong with a
    reference, JobError what is damaged.
    """
    text = str(reference)
    name = public_name(text)
    if text == "portraits" or text.startswith("portraits:"):
        return parse_portraits(text, size)
    if text.startswith(PREFIX):
        return HuggingFaceSource(text.removeprefix(PREFIX), name)
    if is_remote(text):
        archives = fetch_archives(text)
        return TarSource(archives, name) if len(archives) > 1 else _open_file(archives[0], name)
    path = Path(text).expanduser()
    if path.is_dir():
        return _open_folder(path, name)
    if path.is_file():
        return _open_file(path, name)
    shards = expand_pattern(str(path))
    if shards is None:
        raise UserError(f"{name} does not exist; give a folder of images, a zip or tar shards.")
    return TarSource(shards, name)


def _open_folder(path: Path, name: str) -> ImageSource:
    if (path / DATABASE).is_file():
        return LsunSource(path, name)
    if is_saved_dataset(path):
        return HuggingFaceSource(str(path), name)
    shards = sorted(path.glob("*.tar"), key=lambda shard: natural_key(shard.name))
    if not shards:
        return FolderSource(path, name)
    if any(map(is_image, list_files(path))):
        raise UserError(
            f"{name} holds tar shards and loose images; give '{path / '*.tar'}' for the shards, "
            "or a folder with the images alone."
        )
    return TarSource(shards, name)


def _open_file(path: Path, name: str) -> ImageSource:
    suffix = path.suffix.lower()
    if suffix == ".zip":
        return ZipSource(path, name)
    if suffix == ".tar":
        return TarSource([path], name)
    if suffix in (".gz", ".tgz", ".bz2", ".xz", ".zst"):
        raise UserError(f"{name} is compressed, which forbids random access; unpack it first.")
    raise UserError(
        f"{name} is a file of an unknown type; give a folder of images, a zip or tar shards."
    )
