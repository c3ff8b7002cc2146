"""References to tar shards mean what they say; a wrong reference says what is wrong with it."""

from __future__ import annotations

import io
import os
import pickle
import sys
import tarfile
from pathlib import Path

import pytest
from image_files import NAMES, files, keys, picture, pixels, write_folder, write_tar, write_zip

from autoencoder import remote
from autoencoder.images import UnreadableImage, open_source
from autoencoder.sources.naming import public_name
from latentddm.engine.errors import JobError, UserError

FACES = Path(__file__).parents[2].parent / "shared" / "data" / "faces128"


def test_shards_open_as_a_folder_a_brace_and_a_wildcard(tmp_path: Path) -> None:
    for shard in (1, 2, 10):
        write_tar(tmp_path / f"part-{shard}.tar", {f"{shard}-{i}.png": picture(i) for i in (1, 0)})
    (tmp_path / "README.md").write_text("three shards")
    in_order = ["1-1.png", "1-0.png", "2-1.png", "2-0.png", "10-1.png", "10-0.png"]
    assert keys(open_source(tmp_path)) == in_order
    assert keys(open_source(f"{tmp_path}/part-*.tar")) == in_order
    assert keys(open_source(f"{tmp_path}/part-{{1,2,10}}.tar")) == in_order
    assert keys(open_source(f"{tmp_path}/part-{{1..2}}.tar")) == in_order[:4]
    with pytest.raises(UserError, match=r"part-3\.tar"):
        open_source(f"{tmp_path}/part-{{1..3}}.tar")
    with pytest.raises(UserError, match="braces"):
        open_source(f"{tmp_path}/part-{{1..3.tar")


def test_one_name_in_two_shards_stays_two_keys(tmp_path: Path) -> None:
    for shard in "ab":
        write_tar(tmp_path / f"{shard}.tar", {"0.png": picture(ord(shard))})
    source = open_source(tmp_path)
    assert keys(source) == ["a.tar/0.png", "b.tar/0.png"]
    assert source.load(0).image.tobytes() != source.load(1).image.tobytes()


def test_a_folder_with_shards_and_images_is_refused_not_half_read(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", files())
    write_folder(tmp_path / "more", files())
    with pytest.raises(UserError, match="shards and loose images"):
        open_source(tmp_path)
    assert len(open_source(f"{tmp_path}/*.tar")) == len(NAMES)


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names_in_tars_are_read(kind: int, tmp_path: Path) -> None:
    long = "/".join(["folder" * 5] * (3 if kind == tarfile.USTAR_FORMAT else 20)) + "/bild.png"
    content = {"./0.png": picture(0), long: picture(1), "größe.png": picture(2)}
    source = open_source(write_tar(tmp_path / "images.tar", content, kind))
    assert keys(source) == ["0.png", long, "größe.png"]
    assert len(pixels(source)) == 3


def test_members_that_are_no_images_stay_closed(tmp_path: Path) -> None:
    witness = tmp_path / "witness"

    class Attack:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(witness),)

    attack = pickle.dumps(Attack())
    content = {
        "0.png": picture(0),
        "0.pyd": attack,
        "0.pickle": attack,
        "0.npy": attack,
        "0.json": b'{"label": 2}',
        "0.mask.png": picture(1),
        "1.cls": b"4",
        "1.pkl": attack,
        "README.md": b"about",
        "._0.png": b"left by a desktop",
    }
    source = open_source(write_tar(tmp_path / "images.tar", content))
    assert keys(source) == ["0.png", "1"]
    assert source.load(0).label == 2
    with pytest.raises(UnreadableImage, match="no image"):
        source.load(1)
    assert not witness.exists()


def test_two_images_in_one_sample_are_refused(tmp_path: Path) -> None:
    content = {"a.left.png": picture(0), "a.right.png": picture(1)}
    with pytest.raises(UserError, match=r"a\.left\.png, a\.right\.png"):
        open_source(write_tar(tmp_path / "images.tar", content))


def test_a_link_in_a_tar_is_listed_not_followed(tmp_path: Path) -> None:
    path = tmp_path / "images.tar"
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo("0.png")
        member.size = len(picture(0))
        archive.addfile(member, io.BytesIO(picture(0)))
        link = tarfile.TarInfo("1.png")
        link.type, link.linkname = tarfile.SYMTYPE, "../../secret.png"
        archive.addfile(link)
    with pytest.raises(UnreadableImage, match=r"1\.png: a link"):
        open_source(path).load(1)


def test_names_that_climb_are_read_in_place(tmp_path: Path) -> None:
    content = {"../../climb.png": picture(0), ".hidden/a.png": b"", "__MACOSX/a.png": b""}
    for source in (
        open_source(write_zip(tmp_path / "images.zip", content)),
        open_source(write_tar(tmp_path / "images.tar", content)),
    ):
        assert keys(source) == ["../../climb.png"]
        assert len(pixels(source)) == 1
    assert not (tmp_path.parent.parent / "climb.png").exists()


# ---- requests that cannot be met


def test_each_wrong_reference_gets_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write_folder(tmp_path / "text", {"a.txt": b"", "b.txt": b"", "c.csv": b""})
    write_zip(tmp_path / "text.zip", {"a.txt": b""})
    write_tar(tmp_path / "latents.tar", {"0.npy": b"", "0.json": b"{}"})
    (tmp_path / "video.mp4").write_bytes(b"0")
    (tmp_path / "a.tar.gz").write_bytes(b"0")
    for reference, sentence in {
        "missing": "does not exist",
        "empty": "it is empty",
        "text": r"holds no image: .*2 with \.txt, 1 with \.csv",
        "text.zip": "holds no image",
        "latents.tar": r"holds no image .*\.npy",
        "video.mp4": "unknown type",
        "a.tar.gz": "compressed",
        "shard-*.tar": "No file matches",
    }.items():
        with pytest.raises(UserError, match=sentence) as caught:
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


def test_credentials_never_reach_a_manifest_or_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "ATTEMPTS", 1)
    secret = "https://user:hunter2@host:8080/set/0.tar?token=hunter2&a=b#hunter2"
    assert public_name(secret) == "https://host:8080/set/0.tar"
    assert public_name("data/faces:1@2") == "data/faces:1@2"
    with pytest.raises(JobError) as caught:
        open_source(secret)  # there is no such host
    assert "hunter2" not in str(caught.value)


@pytest.mark.skipif(not FACES.is_dir(), reason="needs ../shared/data/faces128")
def test_real_faces_open_with_every_image() -> None:
    source = open_source(FACES)
    assert len(source) == 22_000
    assert source.key(0) == "00000.jpg"
    assert source.load(21_999).image.size == (128, 128)
