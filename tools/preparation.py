"""Shared parts of the tools: exit codes, options with several values, the body of prepare_*.py."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from autoencoder.image_shards import FORMATS, ShardLayout, write_image_shards
from autoencoder.images import ImageSource, Preprocessing
from latentddm.engine.errors import (
    EXIT_FAILED,
    EXIT_SIGNAL,
    EXIT_WRONG_REQUEST,
    Interrupted,
    JobError,
    UserError,
)

Item = TypeVar("Item")


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


def exit_code(work: Callable[[], None]) -> int:
    """Run `work`; 0: done, 1: it failed, 2: the request was wrong, 128 + n: stopped by signal n.

    The error message goes to stderr. After a signal everything done so far is saved.
    """
    try:
        work()
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        return EXIT_SIGNAL + stop.signal_number
    except KeyboardInterrupt:
        print("Stopped; run the same command again to go on.", file=sys.stderr)
        return EXIT_SIGNAL + signal.SIGINT
    except (UserError, JobError) as error:
        print(error, file=sys.stderr)
        return EXIT_WRONG_REQUEST if isinstance(error, UserError) else EXIT_FAILED
    return 0


def folder_of_runs(text: str) -> Path:
    """The argparse type of a folder whose runs are named to compare.py: NAME=RUN,RUN@IMAGES:..."""
    if any(sign in text for sign in "@:,"):
        raise argparse.ArgumentTypeError(f"{text!r} has one of @ : , in its name; choose another")
    return Path(text)


def list_of(kind: Callable[[str], Item]) -> Callable[[str], tuple[Item, ...]]:
    """The argparse type of an option with several values, separated by commas."""

    def read(text: str) -> tuple[Item, ...]:
        try:
            return tuple(kind(part) for part in text.split(","))
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r} is no list with commas: {error}") from None

    return read
