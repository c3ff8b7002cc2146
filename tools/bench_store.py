"""How fast latents are read, in our layout and in the others; how much encoding adds to the model.

    python tools/bench_store.py --output bench [--autoencoder REF --images SRC]

Writes the same random latents in every layout, reads shuffled batches of 256 from each on one core
with warm caches, and prints a table. The other layouts deliver what they hold; ours is measured as
stored and with the conversion to float32 in model space. With an autoencoder and images (default:
those of ../shared, if they are there) it times encoding a store against the bare forward pass over
the same images.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autoencoder.store import LatentStore, encode_store
from autoencoder.store.completion import complete_store, prepare_folder
from autoencoder.store.layout import ChunkFormat, SampleInfo
from autoencoder.store.plan import EncodePlan
from autoencoder.store.shard import ShardBuilder
from latentddm.engine.atomic_io import write_json, write_text

SHAPE = (4, 32, 32)
BATCH = 256
PER_SHARD = 4096
SHARED = Path(__file__).resolve().parents[2] / "shared"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=16384)
    parser.add_argument("--seconds", type=float, default=2.0, help="per layout")
    parser.add_argument("--output", type=Path, help="folder for bench_store.md and .json")
    parser.add_argument("--autoencoder", default=SHARED / "weights" / "taef2")
    parser.add_argument("--images", default=SHARED / "data" / "faces128")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--encode", type=int, default=256, help="images to encode; 0 for none")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report: dict[str, Any] = {"reading": bench_reading(Path(folder), arguments)}
    if (
        arguments.encode
        and Path(arguments.autoencoder).exists()
        and Path(arguments.images).exists()
    ):
        report["encoding"] = bench_encoding(arguments)
    elif arguments.encode:
        print("Encoding is not measured: give --autoencoder and --images.", file=sys.stderr)
    text = table(report)
    print(text)
    if arguments.output:
        write_text(arguments.output / "bench_store.md", text)
        write_json(arguments.output / "bench_store.json", report)


def bench_reading(folder: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Samples per second of every layout, best of three rounds, all layouts in each round."""
    torch.set_num_threads(1)
    latents = np.random.default_rng(0).standard_normal((arguments.samples, *SHAPE))
    latents = latents.astype(np.float16)
    store, enough = write_store(folder / "store", latents), 2 * latents.nbytes
    layouts = {
        "webdataset, 3 members a sample": write_members(folder / "three", latents, 3),
        "webdataset, 1 member a sample": write_members(folder / "one", latents, 1),
        "webdataset, 1 npy member per 256 samples": write_chunks(folder / "chunks", latents),
        "safetensors file, opened per item": write_safetensors(
            folder / "item.safetensors", latents
        ),
        "memory map, random gather": write_memory_map(folder / "map.npy", latents),
        "latent store, tar, first pass of a new store": read_store(store, 0, "latents", anew=True),
        "latent store, tar, as stored": read_store(store, 0, "raw"),
        "latent store, tar, float32 in model space": read_store(store, 0, "latents"),
        "latent store, in memory, as stored": read_store(store, enough, "raw"),
        "latent store, in memory, float32 in model space": read_store(store, enough, "latents"),
    }
    best = dict.fromkeys(layouts, 0.0)
    for _ in range(3):
        for name, open_layout in layouts.items():
            best[name] = max(best[name], rate(open_layout, arguments.seconds))
    plain = best["webdataset, 1 member a sample"]
    gather = best["memory map, random gather"]
    return [
        {
            "layout": name,
            "samples_per_second": round(value),
            "over_webdataset": round(value / plain, 1),
            "over_memory_map": round(value / gather, 2),
        }
        for name, value in best.items()
    ]


def rate(open_layout: Callable[[], Iterator[int]], seconds: float) -> float:
    """Samples per second once the first batch is there; a layout that ends is opened again.

    Seconds of processor time: with warm caches and one thread they are those of the clock on a
    core that is free, and on a busy machine they stay comparable.
    """
    counts = open_layout()
    next(counts)
    done, began = 0, time.process_time()
    while True:
        count = next(counts, None)
        if count is None:
            counts = open_layout()
            continue
        done += count
        elapsed = time.process_time() - began
        if elapsed >= seconds:
            return done / elapsed


def npy(values: np.ndarray) -> bytes:
    buffer = BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def write_tars(folder: Path, members: Iterator[list[tuple[str, bytes]]], per_tar: int) -> str:
    """Groups of members, `per_tar` groups to a tar; returns the pattern of the tars."""
    folder.mkdir()
    number = 0
    while groups := list(islice(members, per_tar)):
        with tarfile.open(folder / f"{number:04d}.tar", "w") as tar:
            for name, data in (member for group in groups for member in group):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, BytesIO(data))
        number += 1
    return str(folder / f"{{0000..{number - 1:04d}}}.tar")


def write_members(folder: Path, latents: np.ndarray, members: int) -> Callable[[], Iterator[int]]:
    import webdataset

    def groups() -> Iterator[list[tuple[str, bytes]]]:
        for index, values in enumerate(latents):
            key = f"{index:08d}"
            group = [(f"{key}.npy", npy(values)), (f"{key}.cls", b"3")]
            group.append((f"{key}.json", json.dumps({"key": key}).encode()))
            yield group[:members]

    urls = write_tars(folder, groups(), PER_SHARD)
    fields = ("npy", "cls", "json")[:members]

    def read() -> Iterator[int]:
        data = webdataset.WebDataset(urls, shardshuffle=8, empty_check=False)
        batches = data.shuffle(1000).decode().to_tuple(*fields).batched(BATCH)
        return (len(batch[0]) for batch in batches)

    return read


def write_chunks(folder: Path, latents: np.ndarray) -> Callable[[], Iterator[int]]:
    import webdataset

    chunks = ([(f"{i:08d}.npy", npy(latents[i : i + 256]))] for i in range(0, len(latents), 256))
    urls = write_tars(folder, chunks, PER_SHARD // 256)

    def read() -> Iterator[int]:
        data = webdataset.WebDataset(urls, shardshuffle=8, empty_check=False).shuffle(4).decode()
        return (len(values) for (values,) in data.to_tuple("npy"))

    return read


def write_safetensors(path: Path, latents: np.ndarray) -> Callable[[], Iterator[int]]:
    from safetensors import safe_open
    from safetensors.numpy import save_file

    save_file({"latents": latents}, path)

    def read() -> Iterator[int]:
        for batch in random_batches(len(latents)):
            with safe_open(path, framework="np") as file:
                part = file.get_slice("latents")
                yield len(np.stack([part[int(index)] for index in batch]))

    return read


def write_memory_map(path: Path, latents: np.ndarray) -> Callable[[], Iterator[int]]:
    np.save(path, latents)
    mapped = np.load(path, mmap_mode="r")
    return lambda: (len(mapped[batch]) for batch in random_batches(len(latents)))


def random_batches(samples: int) -> Iterator[np.ndarray]:
    order = np.random.default_rng(0).permutation(samples)
    return (order[begin : begin + BATCH] for begin in range(0, samples, BATCH))


def write_store(folder: Path, latents: np.ndarray) -> Path:
    layout = ChunkFormat(
        shape=SHAPE, dtype="float16", contents="samples", views=("plain",), chunk_samples=256
    )
    plan = EncodePlan(
        autoencoder=dict.fromkeys(("reference", "fingerprint", "precision"), "none"),
        preprocessing={},
        source={"name": "random", "count": len(latents), "keys": ""},
        layout=layout,
        shard_samples=PER_SHARD,
        seed=None,
    )
    prepare_folder(folder, plan)
    for number in range(plan.shards):
        first = number * PER_SHARD
        part = latents[first : first + PER_SHARD]
        builder = ShardBuilder(number, first, BATCH, layout)
        infos = [SampleInfo(f"{first + i:08d}", None, first + i) for i in range(len(part))]
        builder.add([part], infos)
        builder.write(folder)
    complete_store(folder, plan)
    return folder


def read_store(
    folder: Path, memory: int, what: str, anew: bool = False
) -> Callable[[], Iterator[int]]:
    """Touch the attribute `what` of every batch; `anew` opens the store again for every epoch."""

    def epoch(store: LatentStore) -> Iterator[int]:
        batches = islice(store.stream(BATCH), len(store) // BATCH)
        return (len(getattr(batch, what)) for batch in batches)

    if anew:
        return lambda: epoch(LatentStore(folder, memory=memory))
    store = LatentStore(folder, memory=memory)
    sum(epoch(store))
    return lambda: (len(getattr(batch, what)) for batch in store.stream(BATCH))


def bench_encoding(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds of the bare forward pass and of encode_store, best of three rounds in turn."""
    from autoencoder.images import (
        LoadedPixels,
        Preprocessing,
        Selection,
        iterate_pixels,
        open_source,
    )
    from autoencoder.models import load_autoencoder

    torch.set_num_threads(os.cpu_count() or 1)
    autoencoder = load_autoencoder(arguments.autoencoder)
    whole = open_source(str(arguments.images))
    source = Selection(whole, range(min(arguments.encode, len(whole))))
    preprocessing = Preprocessing(size=arguments.size)
    images = iterate_pixels(source, range(len(source)), preprocessing)
    pixels = torch.from_numpy(
        np.stack([image.pixels for image in images if isinstance(image, LoadedPixels)])
    )
    autoencoder.encode(pixels[:8])
    bare, encoded = [], []
    for _ in range(3):
        began = time.perf_counter()
        for batch in pixels.split(32):
            autoencoder.encode(batch)
        bare.append(time.perf_counter() - began)
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            encode_store(
                source, autoencoder, folder, preprocessing=preprocessing, batch_size=32,
                check=False, show_progress=False,
            )  # fmt: skip
            encoded.append(time.perf_counter() - began)
    return {
        "images": len(pixels),
        "size": arguments.size,
        "bare_forward_seconds": round(min(bare), 2),
        "encode_seconds": round(min(encoded), 2),
        "ratio": round(min(encoded) / min(bare), 3),
    }


def table(report: dict[str, Any]) -> str:
    """The report as markdown."""
    lines = ["| layout | samples/s | x webdataset | x memory map |", "|---|---|---|---|"]
    for row in report["reading"]:
        lines.append(
            f"| {row['layout']} | {row['samples_per_second']:,} | {row['over_webdataset']} | "
            f"{row['over_memory_map']} |"
        )
    if "encoding" in report:
        part = report["encoding"]
        lines += [
            "",
            f"Encoding {part['images']} images of {part['size']} pixels: bare forward "
            f"{part['bare_forward_seconds']} s, latent store {part['encode_seconds']} s, "
            f"ratio {part['ratio']}.",
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
