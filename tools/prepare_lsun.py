#!/usr/bin/env python
"""An LSUN category as downloaded, to tar shards of images for `latentddm encode`.

    python tools/prepare_lsun.py bedroom_train_lmdb.zip bedroom256 --size 256

SOURCE is the category's lmdb folder (`bedroom_train_lmdb`) or its zip; a zip is unpacked beside
OUTPUT first. Each image is cropped to its centre square and resized, as usual for LSUN. `latentddm
encode` reads the lmdb folder without preparation too; prepared shards are smaller and read faster.
After an interruption run the same command again.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import zipfile
import zlib
from pathlib import Path

from command_line import exit_code
from preparation import parser, write

from autoencoder.sources.archive import open_zip
from autoencoder.sources.lsun import DATABASE, LsunSource
from latentddm.engine.atomic_io import atomic_path
from latentddm.engine.errors import JobError, UserError


def main(arguments: list[str] | None = None) -> int:
    """Run the tool; 0 done, 1 the work failed, 2 the request was wrong."""
    options = parser(__doc__ or "", file_format="jpg").parse_args(arguments)
    return exit_code(lambda: write(open_category(options), options))


def open_category(options: argparse.Namespace) -> LsunSource:
    """The database of the category; a zip is unpacked first."""
    source: Path = options.source
    if (source / DATABASE).is_file():
        return LsunSource(source, str(source))
    if source.suffix.lower() == ".zip" and source.is_file():
        output = options.output.absolute()
        folder = output.with_name(f"{output.name}-lmdb")
        unpack(source, folder)
        return LsunSource(folder, str(source))
    raise UserError(
        f"{source} is neither an lmdb folder (with a {DATABASE}) nor a zip of one; give the "
        "download of the category."
    )


def unpack(archive_path: Path, folder: Path) -> None:
    """Unpack the database of a zip to `folder`, atomically, unless it is there already."""
    if (folder / DATABASE).is_file():
        return
    with open_zip(archive_path) as archive:
        entries = [e for e in archive.infolist() if Path(e.filename).name == DATABASE]
        if len(entries) != 1:
            raise UserError(
                f"{archive_path} holds {len(entries)} files named {DATABASE}; give the zip of one "
                "LSUN category."
            )
        folder.parent.mkdir(parents=True, exist_ok=True)
        needed, free = entries[0].file_size, shutil.disk_usage(folder.parent).free
        if needed > free:
            raise JobError(
                f"Unpacking {archive_path} needs {needed / 1e9:.1f} GB and {folder.parent} has "
                f"{free / 1e9:.1f} GB; free space, or unpack it elsewhere and give the folder."
            )
        print(f"Unpacking {archive_path} to {folder} ({needed / 1e9:.1f} GB).")
        try:
            # Only this entry, to a fixed name: no name in the zip becomes a path.
            with atomic_path(folder) as temporary, archive.open(entries[0]) as packed:
                temporary.mkdir()
                with open(temporary / DATABASE, "wb") as database:
                    shutil.copyfileobj(packed, database, 1 << 20)
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise JobError(f"{archive_path} is damaged ({error}); download it again.") from error


if __name__ == "__main__":
    sys.exit(main())
