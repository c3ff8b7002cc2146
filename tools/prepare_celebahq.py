#!/usr/bin/env python
"""CelebA-HQ as downloaded, to tar shards of images for `latentddm encode`.

    python tools/prepare_celebahq.py CelebAMask-HQ.zip faces256 --size 256
    python tools/prepare_celebahq.py CelebAMask-HQ faces256 --split train --label-attribute Smiling

SOURCE is the CelebAMask-HQ folder or zip (with its CelebA-HQ-img folder, mapping and attribute
files), or a plain folder or zip of images. `latentddm encode` reads a plain one without
preparation too; prepared shards are smaller and read faster. After an interruption run the same
command again.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from pathlib import Path
from typing import TypeVar

from command_line import exit_code
from preparation import parser, write

from autoencoder.images import ImageSource, Selection, open_source
from autoencoder.sources.archive import ZipSource, open_zip
from latentddm.engine.errors import UserError

IMAGES = "CelebA-HQ-img"
MAPPING = "CelebA-HQ-to-CelebA-mapping.txt"
ATTRIBUTES = "CelebAMask-HQ-attribute-anno.txt"
# CelebA's own partition, by the number in its file names: the last image of each part
LAST_OF_SPLIT = {"train": 162_770, "val": 182_637, "test": 202_599}

Value = TypeVar("Value")


def main(arguments: list[str] | None = None) -> int:
    """Run the tool; 0 done, 1 the work failed, 2 the request was wrong."""
    options = parser(__doc__ or "", file_format="png")
    options.add_argument("--split", choices=LAST_OF_SPLIT, help="part of CelebA (default all)")
    options.add_argument("--label-attribute", metavar="NAME", help="label 1 where it holds, else 0")
    chosen = options.parse_args(arguments)
    return exit_code(lambda: write(select(chosen), chosen))


def select(options: argparse.Namespace) -> ImageSource:
    """The images of the chosen split, with labels of the chosen attribute."""
    images = open_images(options.source)
    indices = list(range(len(images)))
    name = str(options.source)
    if options.split:
        splits = read_splits(read_beside(options.source, MAPPING))
        indices = [i for i in indices if _row(splits, images.key(i), MAPPING) == options.split]
        if not indices:
            raise UserError(
                f"{options.source} holds no image of --split {options.split}; choose another split."
            )
        name += f", split {options.split}"
    labels = None
    if options.label_attribute:
        text = read_beside(options.source, ATTRIBUTES)
        values = read_attribute(text, options.label_attribute)
        labels = [_row(values, images.key(i), ATTRIBUTES) for i in indices]
        name += f", label {options.label_attribute}"
    return Selection(images, indices, labels, name=name)


def open_images(download: Path) -> ImageSource:
    """The images of a download, without the masks of CelebAMask-HQ."""
    if _is_zip(download):
        with open_zip(download) as archive:
            homes = {
                name.partition(f"{IMAGES}/")[0] + f"{IMAGES}/"
                for name in archive.namelist()
                if f"{IMAGES}/" in name
            }
        return ZipSource(download, str(download), min(homes, key=len, default=""))
    for home in (download, download / "CelebAMask-HQ"):
        if (home / IMAGES).is_dir():
            return open_source(home / IMAGES)
    return open_source(download)


def read_beside(download: Path, name: str) -> str:
    """The text of a file of CelebAMask-HQ, in the folder or in the zip; UserError without it."""
    if _is_zip(download):
        with open_zip(download) as archive:
            found = [member for member in archive.namelist() if Path(member).name == name]
            if found:
                return archive.read(min(found, key=len)).decode()
    for home in (download, download / "CelebAMask-HQ"):
        if (home / name).is_file():
            return (home / name).read_text(encoding="utf-8")
    raise UserError(
        f"{download} has no {name}, the source of --split and --label-attribute; give the "
        "CelebAMask-HQ download."
    )


def read_splits(mapping: str) -> dict[str, str]:
    """The split of each image number, from the lines `idx orig_idx orig_file` of the mapping."""
    splits: dict[str, str] = {}
    for line in mapping.splitlines()[1:]:
        fields = line.split()
        if not fields:
            continue
        original = Path(fields[-1]).stem
        if len(fields) != 3 or not original.isdecimal():
            raise UserError(f"{MAPPING} has a damaged line: {line!r}; download it again.")
        splits[fields[0]] = next(
            split for split, last in LAST_OF_SPLIT.items() if int(original) <= last
        )
    return splits


def read_attribute(annotation: str, attribute: str) -> dict[str, int]:
    """1 or 0 for each image number.

    Lines of the file: a count, the names, then `0.jpg -1 1 ...` for each image.
    """
    lines = annotation.splitlines()
    names = lines[1].split() if len(lines) > 1 else []
    if attribute not in names:
        near = difflib.get_close_matches(attribute, names, n=1) or names
        raise UserError(
            f"{ATTRIBUTES} has no attribute {attribute}; choose {' or '.join(near) or 'none'}."
        )
    column = names.index(attribute) + 1
    values: dict[str, int] = {}
    for line in lines[2:]:
        fields = line.split()
        if fields and (len(fields) != len(names) + 1 or fields[column] not in ("1", "-1")):
            raise UserError(f"{ATTRIBUTES} has a damaged line: {line[:40]!r}; download it again.")
        if fields:
            values[Path(fields[0]).stem] = int(fields[column] == "1")
    return values


def _row(table: dict[str, Value], key: str, file: str) -> Value:
    number = Path(key).stem
    if number not in table:
        raise UserError(f"{file} has no line for {key}; give images and file of one download.")
    return table[number]


def _is_zip(path: Path) -> bool:
    return path.suffix.lower() == ".zip" and path.is_file()


if __name__ == "__main__":
    sys.exit(main())
