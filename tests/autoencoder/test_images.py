"""Images come out the same, in the same order, however they are packed; bad requests say why."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from autoencoder.images import (
    ImageSource,
    Preprocessing,
    UnreadableImage,
    iterate_pixels,
    open_source,
    read_pixels,
)
from autoencoder.sources.naming import class_labels, public_name
from latentddm.engine.errors import RequestError, WorkError

NAMES = [f"image{number}.png" for number in (1, 2, 3, 10, 11, 20)]
FACES = Path(__file__).parents[2].parent / "shared" / "data" / "faces128"


def picture(seed: int, size: tuple[int, int] = (24, 20)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def files(names: list[str] = NAMES) -> dict[str, bytes]:
    return {name: picture(seed) for seed, name in enumerate(names)}


def write_folder(root: Path, content: Mapping[str, bytes]) -> Path:
    for name, data in content.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def write_zip(path: Path, content: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


def write_tar(path: Path, content: Mapping[str, bytes], kind: int = tarfile.USTAR_FORMAT) -> Path:
    with tarfile.open(path, "w", format=kind) as archive:
        for name, data in content.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def write_lmdb(folder: Path, values: Mapping[str, bytes]) -> Path:
    lmdb = pytest.importorskip("lmdb")
    with lmdb.open(str(folder), map_size=1 << 24) as database, database.begin(write=True) as writer:
        for key, data in values.items():
            writer.put(key.encode(), data)
    return folder


def keys(source: ImageSource) -> list[str]:
    return [source.key(index) for index in range(len(source))]


def labels(source: ImageSource) -> list[int | None]:
    return [source.label(index) for index in range(len(source))]


def pixels(source: ImageSource, size: int = 16) -> np.ndarray:
    array, unreadable = read_pixels(source, Preprocessing(size=size))
    assert unreadable == []
    return array


def pack(form: str, place: Path) -> Path:
    content = files()
    if form == "folder":
        return write_folder(place / "folder", content)
    if form == "zip":
        return write_zip(place / "images.zip", dict(reversed(content.items())))
    if form == "tar":
        return write_tar(place / "images.tar", content)
    if form == "lmdb":
        return write_lmdb(
            place / "lmdb", {f"{i:05d}": data for i, data in enumerate(files().values())}
        )
    datasets = pytest.importorskip("datasets")
    rows = {"image": [{"bytes": data, "path": None} for data in content.values()]}
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(place / "saved")
    return place / "saved"


@pytest.mark.parametrize("form", ["folder", "zip", "tar", "lmdb", "saved dataset"])
def test_every_packing_gives_the_same_images_in_the_same_order(form: str, tmp_path: Path) -> None:
    source = open_source(pack(form, tmp_path))
    expected = [np.asarray(Image.open(io.BytesIO(data))) for data in files().values()]
    assert len(source) == len(NAMES)
    for index, wanted in enumerate(expected):
        loaded = source.load(index)
        assert loaded.key == source.key(index)
        np.testing.assert_array_equal(np.asarray(loaded.image), wanted)
    if form in ("folder", "zip", "tar"):
        assert keys(source) == NAMES  # natural order: image2 comes before image10


@pytest.mark.parametrize("form", ["folder", "zip", "tar", "lmdb", "saved dataset"])
def test_a_used_source_works_in_worker_processes_and_after_pickling(
    form: str, tmp_path: Path
) -> None:
    source = open_source(pack(form, tmp_path))
    alone = pixels(source)
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(pixels(copy), alone)
    in_workers, _ = read_pixels(source, Preprocessing(size=16), workers=2)
    np.testing.assert_array_equal(in_workers, alone)


def test_the_order_of_a_folder_does_not_depend_on_the_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = files(["b/1.png", "b/2.png", "a/1.png", "a/10.png", "a/9.png"])
    root = write_folder(tmp_path / "images", content)
    expected = ["a/1.png", "a/9.png", "a/10.png", "b/1.png", "b/2.png"]
    assert keys(open_source(root)) == expected
    scandir = os.scandir

    class Backwards:
        def __init__(self, path: str) -> None:
            self.entries = iter(sorted(scandir(path), key=lambda entry: entry.name)[::-1])

        def __iter__(self) -> Backwards:
            return self

        def __next__(self) -> os.DirEntry[str]:
            return next(self.entries)

        def __enter__(self) -> Backwards:
            return self

        def __exit__(self, *error: object) -> None: ...

        def close(self) -> None: ...

    monkeypatch.setattr(os, "scandir", Backwards)
    assert keys(open_source(root)) == expected


def test_the_stream_is_the_same_for_any_number_of_workers(tmp_path: Path) -> None:
    content = files([f"{number}.png" for number in range(75)])
    content["7.png"] = b"not an image"
    source = open_source(write_folder(tmp_path / "images", content))
    order = list(np.random.default_rng(0).permutation(75)) + [7, 0]

    def stream(workers: int) -> list[tuple[object, ...]]:
        items = iterate_pixels(source, order, Preprocessing(size=16), workers)
        return [
            (item.key, item.reason)
            if isinstance(item, UnreadableImage)
            else (int(item.index), item.key, item.label, item.pixels.tobytes())
            for item in items
        ]

    alone = stream(0)
    assert len(alone) == len(order)
    assert [entry[0] for entry in alone if len(entry) == 4] == [i for i in order if i != 7]
    assert [entry for entry in alone if len(entry) == 2] == [
        ("7.png", "not an image in a known format")
    ] * 2
    assert stream(1) == alone
    assert stream(2) == alone


def test_loading_leaves_the_global_random_state_alone(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    source = open_source(write_folder(tmp_path / "images", files()))
    before = torch.get_rng_state()
    read_pixels(source, Preprocessing(size=16), workers=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_source_that_breaks_stops_the_stream_with_one_sentence(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "images.tar", files())
    for workers in (0, 2):
        source = open_source(path)
        os.truncate(path, 1024)
        with pytest.raises(WorkError, match=r"^\S+images\.tar has become shorter[^\n]*$"):
            list(iterate_pixels(source, range(len(source)), Preprocessing(size=16), workers))
        write_tar(path, files())


def test_a_limit_takes_the_first_images(tmp_path: Path) -> None:
    source = open_source(write_folder(tmp_path / "images", files()))
    everything = pixels(source)
    first, _ = read_pixels(source, Preprocessing(size=16), limit=2)
    np.testing.assert_array_equal(first, everything[:2])
    assert len(read_pixels(source, Preprocessing(size=16), limit=99)[0]) == len(NAMES)


# ---- labels


def test_class_folders_give_labels(tmp_path: Path) -> None:
    content = files(["cat/1.png", "dog/1.png", "dog/2.png", "ant/5.png"])
    for source in (
        open_source(write_folder(tmp_path / "images", content)),
        open_source(write_zip(tmp_path / "images.zip", content)),
        open_source(
            write_zip(tmp_path / "wrapped.zip", {f"set/{k}": v for k, v in content.items()})
        ),
    ):
        assert labels(source) == [0, 1, 2, 2]
        assert source.load(3).label == 2


@pytest.mark.parametrize(
    "names",
    [
        ["1.png", "2.png"],
        ["cat/1.png", "2.png"],
        ["cat/1.png", "dog/1.png", "dog/puppy/2.png"],
        ["images/1.png", "images/2.png"],
        ["train/cat/1.png", "test/dog/1.png"],
    ],
)
def test_other_folders_give_no_labels(names: list[str]) -> None:
    assert class_labels(names) is None


def test_tar_labels_come_from_cls_or_json(tmp_path: Path) -> None:
    content = {
        "a.png": picture(0),
        "a.cls": b"3",
        "b.png": picture(1),
        "b.json": json.dumps({"label": 5, "caption": "a bird"}).encode(),
        "c.png": picture(2),
        "c.json": b'{"caption": "no label"}',
    }
    source = open_source(write_tar(tmp_path / "images.tar", content))
    assert labels(source) == [3, 5, None]
    assert source.load(1).attributes == {"label": 5, "caption": "a bird"}
    broken = open_source(write_tar(tmp_path / "bad.tar", {"a.png": picture(0), "a.cls": b"cat"}))
    with pytest.raises(WorkError, match=r"bad\.tar .*cls.* a\.png"):
        broken.load(0)


def test_saved_datasets_give_labels_and_splits(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"photo": datasets.Image(), "kind": datasets.ClassLabel(names=["cat", "dog"])}
    )
    rows = {
        "photo": [{"bytes": picture(i), "path": None} for i in range(3)],
        "kind": [1, 0, -1],
    }
    table = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict({"a": table, "b": table.select([0])}).save_to_disk(tmp_path / "two")
    assert labels(open_source(f"hf:{tmp_path / 'two'}:a")) == [1, 0, None]
    assert len(open_source(f"hf:{tmp_path / 'two'}:b")) == 1
    with pytest.raises(RequestError, match="no split train.* a, b"):
        open_source(tmp_path / "two")


def test_portraits_are_drawn_at_the_size_asked_for() -> None:
    source = open_source("portraits:20:3", size=32)
    assert (len(source), source.name) == (20, "portraits:20:3")
    first = source.load(4)
    assert first.image.size == (32, 32)
    assert first.attributes
    np.testing.assert_array_equal(
        np.asarray(first.image), np.asarray(pickle.loads(pickle.dumps(source)).load(4).image)
    )
    other = open_source("portraits:20:4", size=32).load(4)
    assert not np.array_equal(np.asarray(first.image), np.asarray(other.image))
    assert len(open_source("portraits")) == 4000
    for wrong in ("portraits:many", "portraits:0", "portraits:1:2:3", "portraits:-4"):
        with pytest.raises(RequestError, match="portraits"):
            open_source(wrong)


# ---- tar shards


def test_shards_open_as_a_folder_a_brace_and_a_wildcard(tmp_path: Path) -> None:
    for shard in (1, 2, 10):
        write_tar(tmp_path / f"part-{shard}.tar", {f"{shard}-{i}.png": picture(i) for i in (1, 0)})
    (tmp_path / "README.md").write_text("three shards")
    in_order = ["1-1.png", "1-0.png", "2-1.png", "2-0.png", "10-1.png", "10-0.png"]
    assert keys(open_source(tmp_path)) == in_order
    assert keys(open_source(f"{tmp_path}/part-*.tar")) == in_order
    assert keys(open_source(f"{tmp_path}/part-{{1,2,10}}.tar")) == in_order
    assert keys(open_source(f"{tmp_path}/part-{{1..2}}.tar")) == in_order[:4]
    with pytest.raises(RequestError, match=r"part-3\.tar"):
        open_source(f"{tmp_path}/part-{{1..3}}.tar")
    with pytest.raises(RequestError, match="braces"):
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
    with pytest.raises(RequestError, match="shards and loose images"):
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
    with pytest.raises(RequestError, match=r"a\.left\.png, a\.right\.png"):
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
        with pytest.raises(RequestError, match=sentence) as caught:
            open_source(tmp_path / reference)
        assert reference in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_hub_dataset_without_a_network_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def unreachable(*arguments: object, **options: object) -> None:
        raise ConnectionError("Couldn't reach the hub\nwith details")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(
        RequestError, match=r"owner/name cannot be opened \(Couldn't reach the hub\)"
    ):
        open_source("hf:owner/name:train")


@pytest.mark.parametrize(("package", "reference"), [("lmdb", "lsun"), ("datasets", "hf:a/b")])
def test_a_missing_package_is_named(
    package: str, reference: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path / "lsun", {"data.mdb": b""})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(RequestError, match=f"pip install {package}"):
        open_source(reference)


def test_credentials_never_reach_a_manifest_or_a_message() -> None:
    secret = "https://user:hunter2@host:8080/set/0.tar?token=hunter2&a=b#hunter2"
    assert public_name(secret) == "https://host:8080/set/0.tar"
    assert public_name("data/faces:1@2") == "data/faces:1@2"
    with pytest.raises(RequestError) as caught:
        open_source(secret)
    assert "hunter2" not in str(caught.value)


@pytest.mark.skipif(not FACES.is_dir(), reason="needs ../shared/data/faces128")
def test_real_faces_open_with_every_image() -> None:
    source = open_source(FACES)
    assert len(source) == 22_000
    assert source.key(0) == "00000.jpg"
    assert source.load(21_999).image.size == (128, 128)
