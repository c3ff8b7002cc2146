"""Compressed shards: refused with the command that rewrites them, and rewritten whole, once."""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from image_files import files, image_file, keys, pixels, write_folder, write_tar
from messages import raises_naming

from autoencoder import models
from autoencoder.images import open_source
from autoencoder.sources import compressed
from autoencoder.store import LatentStore
from latentddm.cli import main
from latentddm.engine.errors import JobError, UserError

PACK: dict[str, Callable[[bytes], bytes]] = {
    ".tar.gz": gzip.compress,
    ".tgz": gzip.compress,
    ".tar.bz2": bz2.compress,
    ".tar.xz": lzma.compress,
}


def shards(folder: Path, ending: str = ".tar.gz") -> Path:
    """A folder of the compressed shards 2 and 10, and a readme."""
    folder.mkdir()
    for shard in (2, 10):
        content = {f"{shard}-{i}.png": image_file(shard + i) for i in range(3)}
        plain = write_tar(folder / "plain.tar", content)
        (folder / f"part-{shard}{ending}").write_bytes(PACK[ending](plain.read_bytes()))
        plain.unlink()
    (folder / "README.md").write_text("two shards")
    return folder


def test_the_refusal_names_the_command(tmp_path: Path) -> None:
    folder = shards(tmp_path / "set")
    for reference in (folder, folder / "part-2.tar.gz", f"{folder}/*.tar.gz"):
        with raises_naming(UserError, str(reference), "latentddm encode", "--decompress FOLDER"):
            open_source(reference)
    (tmp_path / "a.zst").write_bytes(b"0")
    with raises_naming(UserError, "a.zst", "unpack it first"):
        open_source(tmp_path / "a.zst")
    write_folder(folder, files(["0.png"]))
    assert keys(open_source(folder)) == ["0.png"]


@pytest.mark.parametrize("ending", PACK)
def test_shards_are_rewritten_once_in_their_order(
    ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, plain = shards(tmp_path / "set", ending), tmp_path / "plain"
    source = open_source(folder, decompress=plain)
    assert keys(source) == [f"{shard}-{i}.png" for shard in (2, 10) for i in range(3)]
    assert sorted(path.name for path in plain.glob("*.tar")) == ["part-10.tar", "part-2.tar"]
    monkeypatch.setattr(compressed, "_decompress", None)  # not called again
    again = open_source(f"{folder}/part-{{2,10}}{ending}", decompress=plain)
    np.testing.assert_array_equal(pixels(again), pixels(source))
    np.testing.assert_array_equal(pixels(open_source(plain)), pixels(source))


def test_a_damaged_shard_is_named_and_leaves_no_copy(tmp_path: Path) -> None:
    folder, plain = shards(tmp_path / "set"), tmp_path / "plain"
    whole = (folder / "part-10.tar.gz").read_bytes()
    for damaged in (
        whole[: len(whole) // 2],
        whole[:-8] + bytes(8),
        b"no gzip",
        gzip.compress(gzip.decompress(whole)[:2000]),
    ):
        (folder / "part-10.tar.gz").write_bytes(damaged)
        with raises_naming(JobError, "part-10.tar.gz", "download"):
            open_source(folder, decompress=plain)
        assert [path.name for path in plain.glob("*.tar")] == ["part-2.tar"]
        assert not list(plain.glob("*.partial"))
    (folder / "part-10.tar.gz").write_bytes(whole)
    assert len(open_source(folder, decompress=plain)) == 6
    with raises_naming(UserError, "part-2.tar", "--decompress"):
        open_source(plain / "part-2.tar", decompress=tmp_path / "other")


def test_nothing_beside_the_shards_of_a_folder_is_left_out_in_silence(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with raises_naming(UserError, "empty", ".tar.gz", "without --decompress"):
        open_source(tmp_path / "empty", decompress=tmp_path / "plain")
    folder = shards(tmp_path / "set")
    for name in ("0.tar", "0.tar.zst", "0.txz", "sub/0.png"):
        other = folder / name
        other.parent.mkdir(exist_ok=True)
        other.write_bytes(b"one more")
        with raises_naming(UserError, name, "--decompress", f"'{folder}/*.tar.gz'"):
            open_source(folder, decompress=tmp_path / "plain")
        other.unlink()
    assert not (tmp_path / "plain").exists()
    write_tar(folder / "0.tar", {"0.png": image_file(0)})
    with raises_naming(UserError, str(folder), "part-2.tar.gz", f"'{folder}/*.tar'"):
        open_source(folder)
    assert keys(open_source(f"{folder}/*.tar")) == ["0.png"]


def test_the_copies_may_lie_beside_their_shards(tmp_path: Path) -> None:
    folder = shards(tmp_path / "set")
    source = open_source(folder, decompress=folder)
    for again in (open_source(folder, decompress=folder), open_source(folder)):
        np.testing.assert_array_equal(pixels(again), pixels(source))


def test_a_copy_of_another_shard_is_refused(tmp_path: Path) -> None:
    first, plain = shards(tmp_path / "first"), tmp_path / "plain"
    open_source(first, decompress=plain)
    second = tmp_path / "second"
    second.mkdir()
    for shard in (2, 10):
        content = write_tar(tmp_path / "a.tar", {f"{shard}-0.png": image_file(90 + shard)})
        (second / f"part-{shard}.tar.gz").write_bytes(gzip.compress(content.read_bytes()))
    copy = plain / "part-2.tar"
    named = (str(copy), str(first / "part-2.tar.gz"), str(second / "part-2.tar.gz"), "--decompress")
    with raises_naming(UserError, *named):
        open_source(second, decompress=plain)
    moved = first.rename(tmp_path / "moved")
    assert len(open_source(moved, decompress=plain)) == 6
    (plain / "part-2.tar.origin.json").unlink()
    with raises_naming(UserError, str(copy), "not recorded", "delete this copy"):
        open_source(moved, decompress=plain)
    copy.unlink()
    assert len(open_source(moved, decompress=plain)) == 6


@pytest.mark.parametrize("reference", ["portraits:4", "hf:somewhere/images"])
def test_sources_without_shards_refuse_the_option(reference: str, tmp_path: Path) -> None:
    with raises_naming(UserError, reference, "without --decompress"):
        open_source(reference, decompress=tmp_path / "plain")


@pytest.mark.parametrize("ending", PACK)
def test_every_kind_of_damage_is_named(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{ending}"
    whole = PACK[ending](write_tar(tmp_path / "plain.tar", files()).read_bytes())
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 255
    for damaged in (b"", b"<html>" * 99, whole[:-20], bytes(flipped)):
        path.write_bytes(damaged)
        with raises_naming(JobError, path.name, "download"):
            open_source(path, decompress=tmp_path / "copy")


def test_one_command_rewrites_and_encodes_and_goes_on(
    tmp_path: Path, tiny_autoencoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "check_reconstruction", lambda *arguments: None)
    folder, store = shards(tmp_path / "set"), tmp_path / "store"
    arguments = [
        *("encode", "--images", f"{folder}/*.tar.gz", "--decompress", str(tmp_path / "plain")),
        *("--autoencoder", str(tiny_autoencoder), "--output", str(store)),
        *("--size", "16", "--workers", "0"),
    ]
    assert main(arguments) == 0
    shard = store / "latents-000000.tar"
    before = shard.read_bytes()
    shard.unlink()
    (store / "manifest.json").unlink()
    assert main(arguments) == 0
    assert shard.read_bytes() == before
    assert len(LatentStore(store)) == 6
