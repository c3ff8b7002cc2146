"""File names that are not UTF-8: their images are read, encoded and found again by their keys."""

from __future__ import annotations

import io
import itertools
import json
import os
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from image_files import image_file, keys, pixels, write_folder, write_lmdb, write_tar

from autoencoder.images import open_source
from autoencoder.sources.naming import key_of, name_of
from autoencoder.store import LatentStore, verify_store
from latentddm.cli import main

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="names here are not bytes")


def write_cp1252(path: Path, names: list[str]) -> Path:
    """A tar of images as a Windows program of old writes it."""
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT, encoding="cp1252") as archive:
        for seed, name in enumerate(names):
            member = tarfile.TarInfo(name)
            member.size = len(image_file(seed))
            archive.addfile(member, io.BytesIO(image_file(seed)))
    return path


def test_a_key_is_the_name_unless_a_part_of_the_name_needs_an_escape() -> None:
    for name in ("a/b 1.png", "größe.png", "絵.png", "back\\slash.png", r"\x9", r"\xAB.png", "\\"):
        assert key_of(name) == name
    assert key_of(os.fsdecode(b"it\x92s.jpg") if os.name != "nt" else "it\udc92s.jpg") == (
        r"it\x92s.jpg"
    )
    assert key_of(r"it\x92s.jpg") == r"it\x5cx92s.jpg"
    assert key_of("\ud83d.png") == r"\ud83d.png"  # half of a pair, as Windows allows it


def test_keys_are_reversible_unique_and_storable_for_any_name() -> None:
    alphabet = ["\\", "x", "u", "9", "2", "d", "5", "c", "a", "\udc92", "\udcff", "\ud83d", "é"]
    names = [
        "".join(name) for size in range(5) for name in itertools.product(alphabet, repeat=size)
    ]
    generator = np.random.default_rng(0)
    for _ in range(2000):
        data = generator.integers(0, 256, generator.integers(1, 30), dtype=np.uint8).tobytes()
        names.append(data.decode("utf-8", "surrogateescape"))
        names.append("".join(generator.choice(alphabet, 12)))
    found = [key_of(name) for name in names]
    assert [name_of(key) for key in found] == names
    assert len(set(found)) == len(set(names))
    assert all(key.encode().decode() == key for key in found)


@on_linux
def test_a_folder_and_a_tar_with_names_of_other_encodings_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    names = ["it’s.jpg", "größe.jpg", r"it\x92s.jpg", "plain.jpg"]
    for seed, name in enumerate(names):
        (folder / os.fsdecode(name.encode("cp1252"))).write_bytes(image_file(seed))
    source = open_source(folder)
    expected = {r"it\x92s.jpg": 0, r"gr\xf6\xdfe.jpg": 1, r"it\x5cx92s.jpg": 2, "plain.jpg": 3}
    assert set(keys(source)) == set(expected)
    tar = open_source(write_cp1252(tmp_path / "images.tar", names))
    assert keys(tar) == list(expected)
    for opened in (source, tar):
        for index, key in enumerate(keys(opened)):
            wanted = open_source(write_folder(tmp_path / key, {"0.png": image_file(expected[key])}))
            assert opened.load(index).image.tobytes() == wanted.load(0).image.tobytes()


def test_raw_keys_of_a_database_stay_different(tmp_path: Path) -> None:
    lmdb = pytest.importorskip("lmdb")
    folder = write_lmdb(tmp_path / "lsun", {r"a\x92": image_file(0)})
    with lmdb.open(str(folder), map_size=1 << 24) as database, database.begin(write=True) as writer:
        writer.put(b"a\x92", image_file(1))
    source = open_source(folder)
    assert keys(source) == [r"a\x5cx92", r"a\x92"]
    assert len(pixels(source)) == 2


@on_linux
def test_every_file_is_encoded_under_its_key_and_verified(
    tmp_path: Path, tiny_autoencoder: Path, encode_tiny: Callable[[str, Path, Path], Path]
) -> None:
    place = tmp_path / os.fsdecode(b"caf\xe9")
    place.mkdir()
    shard = write_cp1252(place / "images.tar", ["it’s.jpg", "b.jpg"])
    (place / "damaged.tar").write_bytes(
        write_cp1252(tmp_path / "c.tar", ["é.jpg"]).read_bytes().replace(b"\x89PNG", b"PNG?")
    )
    store = encode_tiny(str(shard.parent), tiny_autoencoder, tmp_path / "store")
    encoded = LatentStore(store)
    assert {encoded.key(0), encoded.key(1)} == {r"it\x92s.jpg", "b.jpg"}
    assert len(encoded) == 2
    manifest = json.loads((store / "manifest.json").read_text("utf-8"))
    assert [image["key"] for image in manifest["unreadable"]] == [r"\xe9.jpg"]
    assert manifest["plan"]["source"]["name"].endswith(r"caf\xe9")
    assert verify_store(store).ok


@on_linux
def test_a_command_names_a_folder_that_is_not_utf_8(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / os.fsdecode(b"caf\xe9")
    content = {f"{seed}.png": image_file(seed, (40, 40)) for seed in range(6)}
    write_folder(images, content)
    write_tar(tmp_path / "a.tar", content)
    output = str(images / "figures.json")
    arguments = ["evaluate", str(images), "--reference", str(tmp_path / "a.tar"), "--size", "32"]
    assert main([*arguments, "--output", output]) == 0
    assert main(["verify", str(images)]) == 2
    assert "caf" in capsys.readouterr().err


def test_evaluate_reads_shards_of_dotted_names_as_encode_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = {f"img.v1.{seed:04d}.png": image_file(seed, (40, 40)) for seed in range(6)}
    shard = str(write_tar(tmp_path / "a.tar", content))
    arguments = ["evaluate", shard, "--reference", shard, "--size", "32", "--metrics", "energy"]
    assert main(arguments) != 0
    assert "--keys whole" in capsys.readouterr().err
    assert main([*arguments, "--keys", "whole"]) == 0


def test_a_training_and_a_demo_read_shards_of_dotted_names_by_a_key_of_their_config(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = {f"img.v1.{seed:04d}.png": image_file(seed, (40, 40)) for seed in range(6)}
    shard = str(write_tar(tmp_path / "a.tar", content))
    training = [
        *("train-autoencoder", "portraits_autoencoder.yaml", f"images={shard}", "size=32"),
        *("start=null", "adversarial.weight=0", "loss.perceptual=none", "--dry-run"),
        *("network={widths: [8,8,8], blocks: 1, latent_channels: 3, norm_groups: 4}", "workers=0"),
        f"output={tmp_path / 'run'}",
    ]
    assert main(training) == 2
    assert "keys: whole" in capsys.readouterr().err
    assert main([*training, "keys=whole"]) == 0
    assert "6 images" in capsys.readouterr().out
    demo = ["demo", "--images", shard, "--output", str(tmp_path / "demo")]
    assert main(demo) == 2
    assert "keys: whole" in capsys.readouterr().err
    assert main([*demo, "keys=whole"]) == 2  # six are too few
    assert "6" in capsys.readouterr().err
