"""SIGKILL at random moments: the finished store is the one that was never interrupted."""

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
        time.sleep({pause} * len(pixels))
        return super().encode(pixels)
print("started", flush=True)
encode_toy({folder!r}, ToySource({count}), autoencoder=Slow(), workers={workers}, batch_size=4,
           chunk_samples=2, shard_samples=4, rank={rank}, world_size={world})
"""
ROOT = Path(__file__).parents[3]


def start(
    folder: Path, *, count: int, pause: float, workers: int = 0, rank: int = 0, world: int = 1
) -> subprocess.Popen:
    """Begin an encoding in another process; returns once its imports are done."""
    path = [str(ROOT), str(Path(__file__).parent)]
    program = PROGRAM.format(
        path=path, folder=str(folder), count=count, pause=pause, workers=workers, rank=rank,
        world=world,
    )  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"started\n"
    return process


def kill_after(process: subprocess.Popen, seconds: float) -> bool:
    """Whether the process was still at work, and is dead now."""
    time.sleep(seconds)
    alive = process.poll() is None
    process.kill()
    process.wait()
    return alive


def test_killed_and_finished(tmp_path: Path, toy: SimpleNamespace) -> None:
    options = {"chunk_samples": 2, "shard_samples": 4, "batch_size": 4}
    toy.encode(tmp_path / "whole", toy.Source(40), **options)
    assert kill_after(start(tmp_path / "killed", count=40, pause=0.02), 0.4)
    assert not (tmp_path / "killed" / "manifest.json").exists()
    assert list((tmp_path / "killed" / "encoding").glob("latents-*.json"))
    toy.encode(tmp_path / "killed", toy.Source(40), **options)
    assert toy.folder_bytes(tmp_path / "killed") == toy.folder_bytes(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_twenty_kills(tmp_path: Path, toy: SimpleNamespace, world: int) -> None:
    count, pause, draw = 200, 0.05, random.Random(world)
    options = {"chunk_samples": 2, "shard_samples": 4, "batch_size": 4}
    toy.encode(tmp_path / "whole", toy.Source(count), **options)
    folder, worked, kills = tmp_path / "killed", 0.0, 0
    while not (folder / "manifest.json").exists():
        ranks = [
            start(folder, count=count, pause=pause, workers=1, rank=rank, world=world)
            for rank in range(world)
        ]
        began = time.monotonic()
        if kills < 20:
            kill_after(ranks[-1], draw.uniform(0, 2 * 0.9 * count * pause / world / 20))
            kills += 1
        if kills < 20:
            for process in ranks[:-1]:
                kill_after(process, 0)
        for process in ranks:
            process.wait()
        worked += time.monotonic() - began
    assert kills == 20
    assert toy.folder_bytes(folder) == toy.folder_bytes(tmp_path / "whole")
    # What is lost is at most the shard at work and the start of the decoding, at each kill.
    assert worked * world <= 1.3 * count * pause + 21 * world * 1.0
