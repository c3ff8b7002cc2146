"""Arguments that several verbs share, and their meaning."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import latentddm
from latentddm.engine.errors import UserError

SOURCE_HELP = "a folder, zip, tar shards, LSUN lmdb, a URL of these files, hf:NAME or portraits"
AUTOENCODER_HELP = (
    "a diffusers folder, its URL, a hub id, TAESD weights, a run of train-autoencoder, pixels"
)


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """CONFIG.yaml, overrides and --dry-run: the arguments of the verbs that train."""
    parser.add_argument("config", metavar="CONFIG.yaml", help="a path, or a name in configs/")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the config")
    parser.add_argument("--dry-run", action="store_true", help="print the plan, write nothing")


def find_config(name: str) -> Path:
    """The config of a path or of a name in configs/; UserError if it does not exist."""
    path = Path(name)
    if path.is_file():
        return path
    package = Path(latentddm.__file__).parent
    for folder in (package / "configs", package.parent / "configs"):  # of a wheel, of a checkout
        if (folder / name).is_file():
            return folder / name
    raise UserError(
        f"The config {name} does not exist; give the path of a YAML file or a name in configs/."
    )


def add_keys_argument(parser: argparse.ArgumentParser) -> None:
    """--keys: the samples of tar shards."""
    parser.add_argument(
        "--keys",
        choices=("webdataset", "whole"),
        default="webdataset",
        metavar="RULE",
        help="whole: the name of a sample in a tar has dots (default webdataset: up to the first)",
    )


def add_precision_argument(parser: argparse.ArgumentParser, default: str) -> None:
    """--precision: the number format of products and convolutions."""
    parser.add_argument(
        "--precision",
        choices=("float32", "tf32", "bf16", "fp16"),
        metavar="FORMAT",
        help=f"float32, tf32, bf16 or fp16 (default {default})",
    )


def add_process_arguments(parser: argparse.ArgumentParser) -> None:
    """--rank and --world-size: the arguments of the verbs that several processes can share."""
    parser.add_argument("--rank", type=int, help="of this process (default: accelerate's)")
    parser.add_argument("--world-size", type=int, help="number of processes")


def rank_and_world_size(arguments: argparse.Namespace) -> tuple[int, int]:
    """Rank and world size, by the options or else by `accelerate launch`."""
    rank = arguments.rank if arguments.rank is not None else int(os.environ.get("RANK", 0))
    size = arguments.world_size
    return rank, size if size is not None else int(os.environ.get("WORLD_SIZE", 1))
