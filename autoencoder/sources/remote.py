"""Image archives at a URL: fetched once into the cache, then read as local files."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from braceexpand import braceexpand

from autoencoder.remote import RemoteFolder, cached_file
from autoencoder.sources.naming import public_name, suffix
from latentddm.engine.errors import UserError

KIND = "images"  # the folder of the cache
SUFFIXES = (".zip", ".tar")


def fetch_archives(url: str) -> list[Path]:
    """Local copies of the zip, the tar, or the tar shards ({000..009}) at `url`.

    A copy is fetched again if its size differs from that of the original. UserError for another
    kind of file, JobError for a failed transfer.
    """
    parts = urlsplit(url)
    try:
        paths = list(braceexpand(parts.path))
    except ValueError:
        raise UserError(
            f"The braces in {public_name(url)} do not match; give a range such as {{000..009}}."
        ) from None
    wrong = next((path for path in paths if suffix(path) not in SUFFIXES), None)
    if wrong is not None or "*" in parts.path:
        raise UserError(
            f"{public_name(url)} is not the URL of a .zip, a .tar or of shards such as "
            "{000..009}.tar; copy other images to a local folder."
        )
    folders: dict[str, RemoteFolder] = {}
    archives = []
    for path in paths:
        place, _, name = path.rpartition("/")
        if place not in folders:
            folders[place] = RemoteFolder(urlunsplit(parts._replace(path=place)))
        archives.append(cached_file(folders[place], name, KIND))
    return archives
