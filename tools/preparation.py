"""Shared by prepare_*.py: their options, and the writing of the shards."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from autoencoder.image_shards import FORMATS, ShardLayout, write_image_shards
from autoencoder.images import ImageSource, Preprocessing
from latentddm.engine.errors import JobError


def parser(
    description: str,
    file_format: str,
    size: int = 256,
    source: str = "the download: a folder or a zip",
) -> argparse.ArgumentParser:
    """The parser of a prepare_*.py, with the options that all of them have."""
    options = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("source", type=Path, help=source)
    options.add_argument("output", type=Path, help="the folder for the shards")
    options.add_argument("--size", type=int, default=size, help=f"pixels a side (default {size})")
    options.add_argument(
        "--file-format", choices=FORMATS, default=file_format, help=f"default {file_format}"
    )
    options.add_argument("--images-per-shard", type=int, default=5000, help="default 5000")
    options.add_argument(
        "--workers", type=int, default=min(4, os.cpu_count() or 1), help="processes that decode"
    )
    return options


def write(source: ImageSource, options: argparse.Namespace) -> None:
    """Write the shards; print their number and the unreadable images."""
    prepared = write_image_shards(
        source,
        options.output,
        Preprocessing(size=options.size),
        ShardLayout(file_format=options.file_format, images_per_shard=options.images_per_shard),
        options.workers,
    )
    for image in prepared.unreadable:
        print(f"unreadable: {image}")
    print(
        f"{prepared.images} images in {len(prepared.shards)} shards under {options.output}, "
        f"{len(prepared.unreadable)} unreadable (listed in prepared.json)."
    )
    if not prepared.images:
        raise JobError(f"No image of {options.source} could be read; check the download.")
    print(f"Next: latentddm encode --images {options.output} --size {options.size} ...")
