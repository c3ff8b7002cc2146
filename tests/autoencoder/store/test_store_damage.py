"""Damage to a store is detected, named and repaired; nothing in a store is executed."""

from __future__ import annotations

import io
import json
import pickle
import re
import tarfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from autoencoder.store import LatentStore, verify_store
from autoencoder.store import manifest as manifest_module
from latentddm.engine.errors import JobError, UserError

SHARD = "latents-000002.tar"
CHUNK = 2560  # bytes: three headers, one json and 8 rows of 96 bytes


@pytest.fixture
def store(tmp_path: Path, toy: SimpleNamespace) -> Path:
    toy.encode(tmp_path / "store")
    return tmp_path / "store"


def cut(size: int) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        shard = folder / SHARD
        shard.write_bytes(shard.read_bytes()[:size])

    return damage


def flip_bit(at: int) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        data = bytearray((folder / SHARD).read_bytes())
        data[at] ^= 1
        (folder / SHARD).write_bytes(data)

    return damage


def add_pickle(folder: Path) -> None:
    """Put a pickle in the place of the last chunk, in a shard of the same size."""
    shard, bomb = folder / SHARD, pickle.dumps(Bomb(folder / "executed"))
    size = shard.stat().st_size
    data = shard.read_bytes()[: 3 * CHUNK]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        member = tarfile.TarInfo("000000088.latents.pyd")
        member.size = len(bomb)
        tar.addfile(member, io.BytesIO(bomb))
    shard.write_bytes((data + buffer.getvalue())[: size - 1024].ljust(size, b"\0"))


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return Path.touch, (self.target,)


def swap(folder: Path) -> None:
    other = folder / "latents-000001.tar"
    first, second = (folder / SHARD).read_bytes(), other.read_bytes()
    assert len(first) == len(second)
    (folder / SHARD).write_bytes(second)
    other.write_bytes(first)


def remove(folder: Path) -> None:
    (folder / SHARD).unlink()


DAMAGES = {
    "cut inside a payload": cut(CHUNK + 700),
    "cut inside a header": cut(2 * CHUNK + 100),
    "cut between members": cut(2 * CHUNK),
    "cut to nothing": cut(0),
    "one bit of a value": flip_bit(CHUNK + 700),
    "one bit of a header": flip_bit(CHUNK + 3),
    "one bit of the keys": flip_bit(2 * CHUNK - 600),
    "a pickle": add_pickle,
    "two shards swapped": swap,
    "a shard removed": remove,
}


@pytest.mark.parametrize("name", DAMAGES)
def test_reading_names_the_damaged_shard(store: Path, name: str) -> None:
    DAMAGES[name](store)
    for memory in (0, None):
        with pytest.raises(JobError, match=r"latents-00000[12]\.tar"):
            list(islice(LatentStore(store, memory=memory).stream(8), 25))
    assert not (store / "executed").exists()


@pytest.mark.parametrize("name", DAMAGES)
def test_verify_finds_and_repairs_the_shard(store: Path, toy: SimpleNamespace, name: str) -> None:
    before = toy.folder_bytes(store)
    DAMAGES[name](store)
    report = verify_store(store)
    assert not report.ok
    damaged = {problem.file for problem in report.problems}
    assert damaged == ({SHARD, "latents-000001.tar"} if "swap" in name else {SHARD})
    assert report.shards == 7 - len(damaged)
    repaired = verify_store(store, source=toy.Source(200), autoencoder=toy.Autoencoder(), workers=0)
    assert repaired.ok
    assert set(repaired.repaired) == damaged
    assert toy.folder_bytes(store) == before


def test_verification_of_an_intact_store(store: Path) -> None:
    report = verify_store(store)
    assert (report.ok, report.shards, report.samples) == (True, 7, 200)


def test_problems_name_the_chunk_and_a_swapped_shard(store: Path) -> None:
    flip_bit(CHUNK + 700)(store)
    (problem,) = verify_store(store).problems
    assert re.fullmatch(rf"{SHARD}: .*chunk 000000072: .*checksum.*; repair it .*", str(problem))
    flip_bit(CHUNK + 700)(store)
    swap(store)
    assert "latents-000001.tar" in verify_store(store).problems[1].reason


def test_a_repair_with_another_autoencoder_is_refused(store: Path, toy: SimpleNamespace) -> None:
    remove(store)
    other = toy.Autoencoder(fingerprint="sha256:" + "b" * 64)
    with pytest.raises(UserError, match=r"autoencoder\.fingerprint"):
        verify_store(store, source=toy.Source(200), autoencoder=other)


def test_a_repair_that_gives_other_bytes_changes_nothing(store: Path, toy: SimpleNamespace) -> None:
    flip_bit(700)(store)
    damaged = (store / SHARD).read_bytes()

    class Inexact(toy.Autoencoder):
        def encode(self, pixels: torch.Tensor) -> torch.Tensor:
            return super().encode(pixels) + 0.01

    report = verify_store(store, source=toy.Source(200), autoencoder=Inexact(), workers=0)
    assert not report.ok
    assert "gives other bytes" in str(report.problems[-1])
    assert (store / SHARD).read_bytes() == damaged


def test_wrong_statistics_are_found(store: Path) -> None:
    forge(store, lambda content: content["mean"].__setitem__(0, 3.0))
    (problem,) = verify_store(store).problems
    assert problem.file == "manifest.json"
    assert "mean" in problem.reason


def test_a_foreign_shard_is_found(store: Path) -> None:
    (store / "latents-000009.tar").write_bytes(b"")
    (problem,) = verify_store(store).problems
    assert (problem.file, problem.advice) == ("latents-000009.tar", "remove it")


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.99])
def test_a_truncated_manifest_is_named_and_rebuilt(
    store: Path, toy: SimpleNamespace, keep: float
) -> None:
    path = store / "manifest.json"
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data))])
    with pytest.raises(JobError, match=r"manifest\.json is damaged .*encode again"):
        LatentStore(store)
    assert [problem.file for problem in verify_store(store).problems] == ["manifest.json"]
    report = verify_store(store, source=toy.Source(200), autoencoder=toy.Autoencoder())
    assert report.ok
    assert path.read_bytes() == data


def test_one_wrong_digit_in_the_manifest_is_detected(store: Path) -> None:
    path = store / "manifest.json"
    path.write_text(path.read_text().replace('"samples": 200', '"samples": 201'))
    with pytest.raises(JobError, match="checksum"):
        LatentStore(store)


def test_a_newer_version_is_refused_with_the_advice_to_upgrade(store: Path) -> None:
    forge(store, lambda content: content.update(version=2))
    for read in (LatentStore, verify_store):
        with pytest.raises(UserError, match=r"manifest\.json has version 2, .*newer latentddm"):
            read(store)


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "..", "latents-000000.tar/../x", ""])
def test_other_names_than_those_of_shards_are_refused(store: Path, name: str) -> None:
    forge(store, lambda content: content["shards"][0].update(name=name))
    with pytest.raises(JobError, match=r"manifest\.json is damaged"):
        LatentStore(store)


def test_a_manifest_of_another_program_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"name": "a web app"}')
    with pytest.raises(UserError, match=r"manifest\.json is not .* latent store"):
        LatentStore(tmp_path)


def forge(store: Path, change: Callable[[dict], object]) -> None:
    """Change the manifest and renew its checksum."""
    path = store / "manifest.json"
    content = json.loads(path.read_text())
    del content["checksum"]
    change(content)
    content["checksum"] = manifest_module._checksum(content)
    path.write_text(json.dumps(content))
