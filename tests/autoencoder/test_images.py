"""Images, order and labels of every kind of source; loading in worker processes."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from image_files import (
    NAMES,
    files,
    image_file,
    keys,
    labels,
    pixels,
    write_folder,
    write_lmdb,
    write_tar,
    write_zip,
)
from PIL import Image

from autoencoder.images import (
    Preprocessing,
    UnreadableImage,
    iterate_pixels,
    open_source,
    read_pixels,
)
from autoencoder.sources.naming import class_labels
from latentddm.engine.errors import JobError, UserError


def pack(form: str, place: Path) -> Path:
    """The same images as a source of the given form; the path of it."""
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
def test_every_kind_of_source_gives_the_same_images_in_order(form: str, tmp_path: Path) -> None:
    source = open_source(pack(form, tmp_path))
    expected = [np.asarray(Image.open(io.BytesIO(data))) for data in files().values()]
    assert len(source) == len(NAMES)
    for index, wanted in enumerate(expected):
        loaded = source.load(index)
        assert loaded.key == source.key(index)
        np.testing.assert_array_equal(np.asarray(loaded.image), wanted)
    if form in ("folder", "zip", "tar"):
        assert keys(source) == NAMES  # natural order: image2 before image10


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


def test_the_order_of_a_folder_is_independent_of_the_file_system(
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
    order = [*np.random.default_rng(0).permutation(75).tolist(), 7, 0]

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


def test_loading_does_not_change_the_global_random_state(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    source = open_source(write_folder(tmp_path / "images", files()))
    before = torch.get_rng_state()
    read_pixels(source, Preprocessing(size=16), workers=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_truncated_source_stops_the_stream_with_one_sentence(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "images.tar", files())
    for workers in (0, 2):
        source = open_source(path)
        os.truncate(path, 1024)
        with pytest.raises(JobError, match=r"^\S+images\.tar [^\n]*shorter[^\n]*restore it\.$"):
            list(iterate_pixels(source, range(len(source)), Preprocessing(size=16), workers))
        write_tar(path, files())


def test_workers_end_after_their_parent_is_killed(tmp_path: Path) -> None:
    write_folder(tmp_path / "images", files([f"{number}.png" for number in range(200)]))
    script = (
        "from autoencoder.images import *\n"
        f"source = open_source({str(tmp_path / 'images')!r})\n"
        "stream = iterate_pixels(source, range(200), Preprocessing(size=128), workers=2)\n"
        "next(stream); print('running', flush=True); input()"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert run.stdout is not None
    assert run.stdout.readline() == b"running\n"
    run.kill()
    run.communicate(timeout=30)  # returns once the last process with this output has ended


def test_a_limit_takes_the_first_images(tmp_path: Path) -> None:
    source = open_source(write_folder(tmp_path / "images", files()))
    everything = pixels(source)
    first, _ = read_pixels(source, Preprocessing(size=16), limit=2)
    np.testing.assert_array_equal(first, everything[:2])
    assert len(read_pixels(source, Preprocessing(size=16), limit=99)[0]) == len(NAMES)


# ---- labels


def test_labels_come_from_class_folders(tmp_path: Path) -> None:
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
        "a.png": image_file(0),
        "a.cls": b"3",
        "b.png": image_file(1),
        "b.json": json.dumps({"label": 5, "caption": "a bird"}).encode(),
        "c.png": image_file(2),
        "c.json": b'{"caption": "no label"}',
    }
    source = open_source(write_tar(tmp_path / "images.tar", content))
    assert labels(source) == [3, 5, None]
    assert source.load(1).attributes == {"label": 5, "caption": "a bird"}
    broken = open_source(write_tar(tmp_path / "bad.tar", {"a.png": image_file(0), "a.cls": b"cat"}))
    with pytest.raises(JobError, match=r"bad\.tar .*cls.* a\.png"):
        broken.load(0)


def test_saved_datasets_have_labels_and_splits(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"photo": datasets.Image(), "kind": datasets.ClassLabel(names=["cat", "dog"])}
    )
    rows = {
        "photo": [{"bytes": image_file(i), "path": None} for i in range(3)],
        "kind": [1, 0, -1],
    }
    table = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict({"a": table, "b": table.select([0])}).save_to_disk(tmp_path / "two")
    assert labels(open_source(f"hf:{tmp_path / 'two'}:a")) == [1, 0, None]
    assert len(open_source(f"hf:{tmp_path / 'two'}:b")) == 1
    with pytest.raises(UserError, match=r"no split train.* a, b"):
        open_source(tmp_path / "two")


def test_portraits_are_drawn_at_the_given_size() -> None:
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
        with pytest.raises(UserError, match=f"^{wrong} "):
            open_source(wrong)
