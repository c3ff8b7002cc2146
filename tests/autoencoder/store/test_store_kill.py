"""SIGKILL at random moments: the resumed store equals an uninterrupted one, byte for byte."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

PROGRAM = """
import sys, time
sys.path[:0] = {path!r}
import torch
torch.set_num_threads(1)
from conftest import ToyAutoencoder, ToySource, encode_toy
class Slow(ToyAutoencoder):
    def encode(self, pixels):
        with open({log!r}, "ab", buffering=0) as log:
            log.write(b"." * len(pixels))
        time.sleep({pause} * len(pixels))
        return super().encode(pixels)
print("started", flush=True)
encode_toy({folder!r}, ToySource({count}), autoencoder=Slow(), workers={workers}, batch_size=2,
           chunk_samples=1, shard_samples=2, rank={rank}, world_size={world})
"""
OPTIONS = {"chunk_samples": 1, "shard_samples": 2, "batch_size": 2}
ROOT = Path(__file__).parents[3]


def start(
    folder: Path, *, count: int, pause: float, workers: int = 0, rank: int = 0, world: int = 1
) -> subprocess.Popen:
    """An encoding in another process, after its imports."""
    program = PROGRAM.format(
        path=[str(ROOT), str(Path(__file__).parent)],
        log=str(folder.with_suffix(".log")),
        folder=str(folder),
        count=count,
        pause=pause,
        workers=workers,
        rank=rank,
        world=world,
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"started\n"
    return process


def kill(process: subprocess.Popen) -> None:
    process.kill()
    process.wait()


def test_a_killed_encoding_is_resumed(tmp_path: Path, toy: SimpleNamespace) -> None:
    toy.encode(tmp_path / "whole", toy.Source(20), **OPTIONS)
    folder = tmp_path / "killed"
    process = start(folder, count=20, pause=0.05)
    while not list(folder.glob("encoding/latents-00000[3-9].json")):
        assert process.poll() is None
        time.sleep(0.01)
    kill(process)
    assert not (folder / "manifest.json").exists()
    again = toy.Autoencoder()
    toy.encode(folder, toy.Source(20), autoencoder=again, **OPTIONS)
    assert again.encoded <= 12
    assert toy.folder_bytes(folder) == toy.folder_bytes(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_twenty_kills(tmp_path: Path, toy: SimpleNamespace, world: int) -> None:
    count, pause, kills = 200, 0.05, 20
    draw = random.Random(world)
    toy.encode(tmp_path / "whole", toy.Source(count), **OPTIONS)
    folder = tmp_path / "killed"
    for remaining in range(kills, -1, -1):
        ranks = [
            start(folder, count=count, pause=pause, workers=1, rank=rank, world=world)
            for rank in range(world)
        ]
        if remaining:
            time.sleep(draw.uniform(0, 1.4 * count * pause / world / kills))
            assert ranks[-1].poll() is None
            kill(ranks.pop())
        for process in ranks:
            process.wait()
    assert toy.folder_bytes(folder) == toy.folder_bytes(tmp_path / "whole")
    assert len(folder.with_suffix(".log").read_bytes()) <= 1.3 * count
