"""The layouts that bench_store.py compares: a writer of each, which returns its reader.

A writer takes latents, float16 [N, *SHAPE]; each call of its reader is one pass over them in random
order, an iterator of the sizes of its batches.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Iterator
from io import BytesIO
from itertools import islice
from pathlib import Path

import numpy as np

from autoencoder.store import LatentStore
from autoencoder.store.completion import complete_store, prepare_folder
from autoencoder.store.layout import ChunkFormat, SampleInfo
from autoencoder.store.plan import EncodePlan
from autoencoder.store.shard import ShardBuilder

SHAPE = (4, 32, 32)
BATCH = 256
PER_SHARD = 4096


def npy(values: np.ndarray) -> bytes:
    """An array as the bytes of a .npy file."""
    buffer = BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def write_tars(folder: Path, files: Iterator[list[tuple[str, bytes]]], per_tar: int) -> str:
    """Write groups of files, `per_tar` groups to a tar; returns the pattern of the tars."""
    folder.mkdir()
    number = 0
    while groups := list(islice(files, per_tar)):
        with tarfile.open(folder / f"{number:04d}.tar", "w") as tar:
            for name, data in (file for group in groups for file in group):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, BytesIO(data))
        number += 1
    return str(folder / f"{{0000..{number - 1:04d}}}.tar")


def write_samples(folder: Path, latents: np.ndarray, files: int) -> Callable[[], Iterator[int]]:
    """Webdataset shards with the first of the files npy, cls, json for each sample."""
    import webdataset

    def groups() -> Iterator[list[tuple[str, bytes]]]:
        for index, values in enumerate(latents):
            key = f"{index:08d}"
            group = [(f"{key}.npy", npy(values)), (f"{key}.cls", b"3")]
            group.append((f"{key}.json", json.dumps({"key": key}).encode()))
            yield group[:files]

    urls = write_tars(folder, groups(), PER_SHARD)
    fields = ("npy", "cls", "json")[:files]

    def read() -> Iterator[int]:
        data = webdataset.WebDataset(urls, shardshuffle=8, empty_check=False)
        batches = data.shuffle(1000).decode().to_tuple(*fields).batched(BATCH)
        return (len(batch[0]) for batch in batches)

    return read


def write_chunks(folder: Path, latents: np.ndarray) -> Callable[[], Iterator[int]]:
    """Webdataset shards with a .npy file for each 256 samples."""
    import webdataset

    chunks = ([(f"{i:08d}.npy", npy(latents[i : i + 256]))] for i in range(0, len(latents), 256))
    urls = write_tars(folder, chunks, PER_SHARD // 256)

    def read() -> Iterator[int]:
        data = webdataset.WebDataset(urls, shardshuffle=8, empty_check=False).shuffle(4).decode()
        return (len(values) for (values,) in data.to_tuple("npy"))

    return read


def write_safetensors(path: Path, latents: np.ndarray) -> Callable[[], Iterator[int]]:
    """One safetensors file, opened for each batch and sliced for each sample."""
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
    """One .npy file, mapped into memory and gathered by random indices."""
    np.save(path, latents)
    mapped = np.load(path, mmap_mode="r")
    return lambda: (len(mapped[batch]) for batch in random_batches(len(latents)))


def random_batches(samples: int) -> Iterator[np.ndarray]:
    """Indices of random batches, without replacement."""
    order = np.random.default_rng(0).permutation(samples)
    return (order[begin : begin + BATCH] for begin in range(0, samples, BATCH))


def write_store(folder: Path, latents: np.ndarray) -> Path:
    """A latent store; its readers are made by `read_store`."""
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
    folder: Path, memory: int, contents: str, anew: bool = False
) -> Callable[[], Iterator[int]]:
    """Read the attribute `contents` of every batch; `anew`: from a new store in every epoch."""

    def epoch(store: LatentStore) -> Iterator[int]:
        batches = islice(store.stream(BATCH), len(store) // BATCH)
        return (len(getattr(batch, contents)) for batch in batches)

    if anew:
        return lambda: epoch(LatentStore(folder, memory=memory))
    store = LatentStore(folder, memory=memory)
    sum(epoch(store))
    return lambda: (len(getattr(batch, contents)) for batch in store.stream(BATCH))
