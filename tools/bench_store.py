"""Reading speed of latents in our layout and in others; cost of encoding beside the bare model.

    python tools/bench_store.py --output bench [--autoencoder REF --images SRC]

Writes the same random latents in every layout, reads shuffled batches of 256 from each on one core
with warm caches, and prints a table. The other layouts are read as stored; ours as stored and with
the conversion to float32 in model space. With --autoencoder and --images the encoding of a store is
timed beside the bare forward pass over the same images.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_store_layouts import (
    SHAPE,
    read_store,
    write_chunks,
    write_memory_map,
    write_safetensors,
    write_samples,
    write_store,
)

from autoencoder.store import encode_store
from latentddm.engine.atomic_io import make_folder, write_json, write_text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=16384)
    parser.add_argument("--seconds", type=float, default=2.0, help="per layout")
    parser.add_argument("--output", type=Path, help="folder for bench_store.md and .json")
    parser.add_argument("--autoencoder", metavar="REF", help="with --images: time encoding too")
    parser.add_argument("--images", metavar="SRC")
    parser.add_argument("--size", type=int, default=256, help="of the images to encode")
    parser.add_argument("--encode", type=int, default=256, help="number of images to encode")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report: dict[str, Any] = {"reading": bench_reading(Path(folder), arguments)}
    if arguments.autoencoder and arguments.images:
        report["encoding"] = bench_encoding(arguments)
    text = table(report)
    print(text)
    if arguments.output:
        make_folder(arguments.output)
        write_text(arguments.output / "bench_store.md", text)
        write_json(arguments.output / "bench_store.json", report)


def bench_reading(folder: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Samples per second of every layout: the best of three rounds over all layouts."""
    torch.set_num_threads(1)
    latents = np.random.default_rng(0).standard_normal((arguments.samples, *SHAPE))
    latents = latents.astype(np.float16)
    store, enough = write_store(folder / "store", latents), 2 * latents.nbytes
    layouts = {
        "webdataset, 3 files a sample": write_samples(folder / "three", latents, 3),
        "webdataset, 1 file a sample": write_samples(folder / "one", latents, 1),
        "webdataset, 1 npy file per 256 samples": write_chunks(folder / "chunks", latents),
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
    plain = best["webdataset, 1 file a sample"]
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
    """Samples per second after the first batch; a layout that ends is opened again.

    Seconds are processor time: with warm caches and one thread, equal to the clock's on an idle
    core and comparable on a busy machine.
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


def bench_encoding(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds of the bare forward pass and of encode_store: the best of three rounds in turn."""
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
    whole = open_source(arguments.images)
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
