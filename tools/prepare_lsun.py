#!/usr/bin/env python
"""Turn an LSUN category, as people download it, into tar shards of images for `latentddm encode`.

    python tools/prepare_lsun.py bedroom_train_lmdb.zip bedroom256 --size 256

SOURCE is the category's lmdb folder (`bedroom_train_lmdb`), or the zip that holds it; a zip is
unpacked beside OUTPUT first. Each image becomes its centre square, resized, as usual for LSUN.
The lmdb folder can go to `latentddm encode` as it is; prepared shards are smaller and read
faster. Interrupted, run the same command again.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import zipfile
import zlib
from pathlib import Path

from preparation import exit_code, parser, write

from autoencoder.sources.archive import open_zip
from autoencoder.sources.lsun import DATABASE, LsunSource
from latentddm.engine.atomic_io import atomic_path
from latentddm.engine.errors import JobError, UserError


def main(arguments: list[str] | None = None) -> int:
    """Run the tool; 0 done, 1 the work failed, 2 the request was wrong."""
    options = parser(__doc__ or "", file_format="jpg").parse_args(arguments)
    return exit_code(lambda: write(open_category(options), options))


def open_category(options: argparse.Namespace) -> LsunSource:
    """The database of the category, unpacked if it comes in a zip."""
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
        "category as it was downloaded."
    )


def unpack(archive_path: Path, folder: Path) -> None:
    """Unpack the database of a zip to `folder`, whole or not at all; once is enough."""
    if (folder / DATABASE).is_file():
        return
    with open_zip(archive_path) as archive:
        members = [m for m in archive.infolist() if Path(m.filename).name == DATABASE]
        if len(members) != 1:
            raise UserError(
                f"{archive_path} holds {len(members)} files named {DATABASE}; give the zip of one "
                "LSUN category."
            )
        folder.parent.mkdir(parents=True, exist_ok=True)
        needed, free = members[0].file_size, shutil.disk_usage(folder.parent).free
        if needed > free:
            raise JobError(
                f"Unpacking {archive_path} needs {needed / 1e9:.1f} GB and {folder.parent} has "
                f"{free / 1e9:.1f} GB; free space, or unpack it elsewhere and give the folder."
            )
        print(f"Unpacking {archive_path} to {folder} ({needed / 1e9:.1f} GB).")
        try:
            # only this member, to a name of ours: other names in the zip never become paths
            with atomic_path(folder) as temporary, archive.open(members[0]) as packed:
                temporary.mkdir()
                with open(temporary / DATABASE, "wb") as database:
                    shutil.copyfileobj(packed, database, 1 << 20)
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise JobError(f"{archive_path} is damaged ({error}); download it again.") from error


if __name__ == "__main__":
    sys.exit(main())
