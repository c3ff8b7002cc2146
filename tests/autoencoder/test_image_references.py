"""References to tar shards, and the messages about wrong references."""

from __future__ import annotations

import io
import os
import pickle
import sys
import tarfile
from pathlib import Path

import pytest
from image_files import (
    NAMES,
    files,
    image_file,
    keys,
    labels,
    pixels,
    write_folder,
    write_tar,
    write_zip,
)
from messages import raises_naming

from autoencoder import models, remote
from autoencoder.images import UnreadableImage, open_source
from autoencoder.sources.naming import public_name
from latentddm.cli import main
from latentddm.engine.errors import JobError, UserError

FACES = Path(__file__).parents[2].parent / "shared" / "data" / "faces128"


def test_shards_open_as_a_folder_a_brace_and_a_wildcard(tmp_path: Path) -> None:
    for shard in (1, 2, 10):
        write_tar(
            tmp_path / f"part-{shard}.tar", {f"{shard}-{i}.png": image_file(i) for i in (1, 0)}
        )
    (tmp_path / "README.md").write_text("three shards")
    in_order = ["1-1.png", "1-0.png", "2-1.png", "2-0.png", "10-1.png", "10-0.png"]
    assert keys(open_source(tmp_path)) == in_order
    assert keys(open_source(f"{tmp_path}/part-*.tar")) == in_order
    assert keys(open_source(f"{tmp_path}/part-{{1,2,10}}.tar")) == in_order
    assert keys(open_source(f"{tmp_path}/part-{{1..2}}.tar")) == in_order[:4]
    with pytest.raises(UserError, match=r"part-3\.tar.*check the path"):
        open_source(f"{tmp_path}/part-{{1..3}}.tar")
    with pytest.raises(UserError, match="braces"):
        open_source(f"{tmp_path}/part-{{1..3.tar")


def test_one_name_in_two_shards_becomes_two_keys(tmp_path: Path) -> None:
    for shard in "ab":
        write_tar(tmp_path / f"{shard}.tar", {"0.png": image_file(ord(shard))})
    source = open_source(tmp_path)
    assert keys(source) == ["a.tar/0.png", "b.tar/0.png"]
    assert source.load(0).image.tobytes() != source.load(1).image.tobytes()


def test_a_folder_with_shards_and_loose_images_is_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", files())
    write_folder(tmp_path / "more", files())
    with pytest.raises(UserError, match=r"loose images.*\*\.tar"):
        open_source(tmp_path)
    assert len(open_source(f"{tmp_path}/*.tar")) == len(NAMES)


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names_in_tars_are_read(kind: int, tmp_path: Path) -> None:
    long = "/".join(["folder" * 5] * (3 if kind == tarfile.USTAR_FORMAT else 20)) + "/bild.png"
    content = {"./0.png": image_file(0), long: image_file(1), "größe.png": image_file(2)}
    source = open_source(write_tar(tmp_path / "images.tar", content, kind))
    assert keys(source) == ["0.png", long, "größe.png"]
    assert len(pixels(source)) == 3


def test_members_other_than_images_and_labels_are_not_read(tmp_path: Path) -> None:
    witness = tmp_path / "witness"

    class Attack:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(witness),)

    attack = pickle.dumps(Attack())
    content = {
        "0.png": image_file(0),
        "0.pyd": attack,
        "0.pickle": attack,
        "0.npy": attack,
        "0.json": b'{"label": 2}',
        "0.mask.png": image_file(1),
        "1.cls": b"4",
        "1.pkl": attack,
        "README.md": b"about",
        "._0.png": b"hidden",
    }
    source = open_source(write_tar(tmp_path / "images.tar", content))
    assert keys(source) == ["0.png", "1"]
    assert source.load(0).label == 2
    with pytest.raises(UnreadableImage, match="no image"):
        source.load(1)
    assert not witness.exists()


def test_two_images_in_one_sample_are_refused(tmp_path: Path) -> None:
    content = {"a.left.png": image_file(0), "a.right.png": image_file(1)}
    with raises_naming(
        UserError, "a.left.png, a.right.png", "webdataset", "first dot", "--keys whole"
    ):
        open_source(write_tar(tmp_path / "images.tar", content))


def test_names_with_dots_are_samples_of_their_own_with_whole_keys(tmp_path: Path) -> None:
    content = {
        "img.v1.0002.jpg": image_file(2),
        "img.v1.0002.cls": b"7",
        "./img.v1.0001.jpg": image_file(1),
        "b.png": image_file(3),
        "README": b"about",
    }
    path = write_tar(tmp_path / "images.tar", content)
    for reference in (path, tmp_path, f"{tmp_path}/*.tar"):
        with raises_naming(UserError, "img.v1.0002.jpg, img.v1.0001.jpg", "--keys whole"):
            open_source(reference)
        source = open_source(reference, sample_keys="whole")
        assert keys(source) == ["img.v1.0002.jpg", "img.v1.0001.jpg", "b.png"]
        assert labels(source) == [7, None, None]
        assert len(pixels(source)) == 3
    twice = write_tar(tmp_path / "twice.tar", {"a.b.jpg": b"", "a.b.png": b""})
    with raises_naming(UserError, "a.b.jpg, a.b.png"):
        open_source(twice, sample_keys="whole")


def test_a_link_in_a_tar_is_unreadable_and_not_followed(tmp_path: Path) -> None:
    path = tmp_path / "images.tar"
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo("0.png")
        member.size = len(image_file(0))
        archive.addfile(member, io.BytesIO(image_file(0)))
        link = tarfile.TarInfo("1.png")
        link.type, link.linkname = tarfile.SYMTYPE, "../../secret.png"
        archive.addfile(link)
    with pytest.raises(UnreadableImage, match=r"1\.png: a link"):
        open_source(path).load(1)


def test_names_with_parent_folders_are_read_inside_the_archive(tmp_path: Path) -> None:
    content = {"../../climb.png": image_file(0), ".hidden/a.png": b"", "__MACOSX/a.png": b""}
    for source in (
        open_source(write_zip(tmp_path / "images.zip", content)),
        open_source(write_tar(tmp_path / "images.tar", content)),
    ):
        assert keys(source) == ["../../climb.png"]
        assert len(pixels(source)) == 1
    assert not (tmp_path.parent.parent / "climb.png").exists()


def test_whole_keys_are_encoded_and_repaired(
    tmp_path: Path, tiny_autoencoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "check_reconstruction", lambda *arguments: None)
    content = {f"img.v1.{number:04d}.png": image_file(number) for number in range(4)}
    images = str(write_tar(tmp_path / "images.tar", content))
    source = ["--images", images, "--autoencoder", str(tiny_autoencoder), "--keys", "whole"]
    store = tmp_path / "store"
    options = ["--output", str(store), "--size", "16", "--workers", "0"]
    assert main(["encode", *source, *options]) == 0
    shard = store / "latents-000000.tar"
    before = shard.read_bytes()
    shard.write_bytes(before[:-1])
    assert main(["verify", str(store), "--repair", *source]) == 0
    assert shard.read_bytes() == before


# ---- wrong references


def test_each_wrong_reference_is_named_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write_folder(tmp_path / "text", {"a.txt": b"", "b.txt": b"", "c.csv": b""})
    write_zip(tmp_path / "text.zip", {"a.txt": b""})
    write_tar(tmp_path / "latents.tar", {"0.npy": b"", "0.json": b"{}"})
    (tmp_path / "video.mp4").write_bytes(b"0")
    (tmp_path / "a.tar.gz").write_bytes(b"0")
    for reference, reason in {
        "missing": "does not exist",
        "empty": "it is empty",
        "text": r"holds no image: .*2 with \.txt, 1 with \.csv",
        "text.zip": "holds no image",
        "latents.tar": r"holds no image .*\.npy",
        "video.mp4": "unknown type",
        "a.tar.gz": "compressed",
        "shard-*.tar": "No file matches",
    }.items():
        with pytest.raises(UserError, match=reason) as caught:
            open_source(tmp_path / reference)
        assert reference in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_hub_dataset_without_a_network_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def unreachable(*arguments: object, **options: object) -> None:
        raise ConnectionError("Couldn't reach the hub\nwith details")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(UserError, match=r"owner/name cannot be opened \(Couldn't reach the hub\)"):
        open_source("hf:owner/name:train")


@pytest.mark.parametrize(("package", "reference"), [("lmdb", "lsun"), ("datasets", "hf:a/b")])
def test_a_missing_package_is_named(
    package: str, reference: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path / "lsun", {"data.mdb": b""})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=f"pip install {package}"):
        open_source(reference)


def test_credentials_are_in_no_manifest_and_no_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "ATTEMPTS", 1)
    secret = "https://user:hunter2@host:8080/set/0.tar?token=hunter2&a=b#hunter2"
    assert public_name(secret) == "https://host:8080/set/0.tar"
    assert public_name("data/faces:1@2") == "data/faces:1@2"
    with pytest.raises(JobError) as caught:
        open_source(secret)  # an unknown host
    assert "host:8080/set/0.tar" in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.skipif(not FACES.is_dir(), reason="the faces are missing")
def test_all_real_faces_are_found() -> None:
    source = open_source(FACES)
    assert len(source) == 22_000
    assert source.key(0) == "00000.jpg"
    assert source.load(21_999).image.size == (128, 128)
