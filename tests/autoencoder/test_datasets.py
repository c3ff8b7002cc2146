"""Hugging Face datasets as people have them: parquet files, configs, several columns, no disk."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_files import image_file, keys, labels, pixels
from messages import raises_naming

from autoencoder.images import (
    ImageSource,
    Preprocessing,
    UnreadableImage,
    open_source,
    read_pixels,
    select_at_random,
)
from autoencoder.sources import parquet
from autoencoder.sources.huggingface import DatasetReference, parse_reference
from autoencoder.sources.parquet import ParquetSource
from autoencoder.sources.protocol import is_sequential
from autoencoder.store import LatentStore
from latentddm.engine.errors import JobError, UserError

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No network, and the cache of datasets below the folder of the test."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def table(first: int = 0, count: int = 5) -> Any:
    """Rows as those of CIFAR-100 on the hub: img, fine_label, coarse_label."""
    kinds = datasets.Features(
        {
            "img": datasets.Image(),
            "fine_label": datasets.ClassLabel(names=["a", "b", "c"]),
            "coarse_label": datasets.ClassLabel(names=["x", "y"]),
        }
    )
    numbers = range(first, first + count)
    rows = {
        "img": [{"bytes": image_file(number), "path": None} for number in numbers],
        "fine_label": [number % 3 for number in numbers],
        "coarse_label": [number % 2 for number in numbers],
    }
    return datasets.Dataset.from_dict(rows, features=kinds)


def write(path: Path, rows: Any) -> Path:
    """A parquet file of several row groups, as the hub has them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows.to_parquet(path, batch_size=2)
    return path


def wanted(first: int, count: int, folder: Path) -> np.ndarray:
    folder.mkdir()
    for number in range(first, first + count):
        (folder / f"{number}.png").write_bytes(image_file(number))
    return pixels(open_source(folder))


def opened(reference: str) -> ImageSource:
    source = open_source(reference)
    copy: ImageSource = pickle.loads(pickle.dumps(source))
    assert keys(copy) == keys(source)
    return source


@pytest.mark.parametrize("options", ["", "?streaming=true"])
def test_a_folder_of_parquet_files_of_the_hub_is_read(options: str, tmp_path: Path) -> None:
    folder = tmp_path / "cifar100"
    write(folder / "test-00000.parquet", table())
    source = opened(f"hf:{folder}{options}")
    assert keys(source) == [f"test/{row:08d}" for row in range(5)]
    assert labels(source) == [0, 1, 2, 0, 1]
    assert source.load(4).label == 1
    expected = wanted(0, 5, tmp_path / "files")
    np.testing.assert_array_equal(pixels(source), expected)
    in_workers, _ = read_pixels(source, Preprocessing(size=16), workers=2)
    np.testing.assert_array_equal(in_workers, expected)


@pytest.mark.parametrize("options", ["", "?streaming=true"])
def test_shards_and_splits_of_a_folder(options: str, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    for shard in range(2):
        name = f"train-{shard:05d}-of-00002.parquet"
        write(folder / "data" / name, table(3 * shard, 3))
    write(folder / "data" / "test-00000-of-00001.parquet", table(20, 2))
    source = opened(f"hf:{folder}{options}")
    assert keys(source) == [f"train/{row:08d}" for row in range(6)]
    np.testing.assert_array_equal(pixels(source), wanted(0, 6, tmp_path / "train"))
    test = opened(f"hf:{folder}:test{options}")
    np.testing.assert_array_equal(pixels(test), wanted(20, 2, tmp_path / "test"))
    with raises_naming(UserError, "no split val", f"hf:{folder}:SPLIT", "train, test"):
        open_source(f"hf:{folder}:val{options}")


@pytest.mark.parametrize("options", ["", "?streaming=true"])
def test_a_config_is_chosen_by_name(options: str, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    write(folder / "small" / "train-00000.parquet", table(0, 2))
    write(folder / "large" / "train-00000.parquet", table(0, 4))
    write(folder / "large" / "test-00000.parquet", table(9, 1))
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: small\n  data_files: small/*.parquet\n"
        "- config_name: large\n  data_files:\n"
        "  - {split: train, path: large/train*}\n  - {split: test, path: large/test*}\n---\n"
    )
    assert len(open_source(f"hf:{folder}:small:train{options}")) == 2
    assert len(open_source(f"hf:{folder}:large:{options}")) == 4
    assert keys(open_source(f"hf:{folder}:large:test{options}")) == ["test/00000000"]
    with raises_naming(UserError, str(folder), "large", "hf:NAME:CONFIG:SPLIT"):
        open_source(f"hf:{folder}{options}")


@pytest.mark.parametrize("options", ["", "streaming=true"])
def test_of_two_image_columns_the_one_that_is_read_is_named(
    options: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "set"
    masks = [{"bytes": image_file(50 + number), "path": None} for number in range(3)]
    masks[1] = {"bytes": None, "path": None}
    rows = table(0, 3).add_column("mask", masks, feature=datasets.Image())
    write(folder / "train-00000.parquet", rows)
    caplog.set_level("INFO", "latentddm")
    source = open_source(f"hf:{folder}?{options}" if options else f"hf:{folder}")
    named = " ".join(caplog.messages)
    assert f"image columns img, mask; img is read (hf:{folder}?image=COLUMN" in named
    assert "label columns fine_label, coarse_label; fine_label is read" in named
    np.testing.assert_array_equal(pixels(source), wanted(0, 3, tmp_path / "images"))
    other = f"hf:{folder}?image=mask&label=coarse_label" + (f"&{options}" if options else "")
    mask = open_source(other)
    assert labels(mask) == [0, 1, 0]
    assert mask.load(2).image.tobytes() != source.load(2).image.tobytes()
    with pytest.raises(UnreadableImage, match="the row has no image"):
        mask.load(1)
    with raises_naming(UserError, "no column masks", "?image=COLUMN", "img", "mask"):
        open_source(other.replace("=mask", "=masks"))
    with raises_naming(UserError, "fine_label", "does not hold images", "?image=COLUMN"):
        source = open_source(other.replace("=mask", "=fine_label"))
        source.load(0)


@pytest.mark.parametrize("options", ["", "&streaming=true"])
def test_labels_are_whole_numbers(options: str, tmp_path: Path) -> None:
    rows = table(0, 4)
    columns = {
        "name": ["cat", "dog", "cat", "cow"],
        "score": [0.5, 1.5, 2.0, -1.0],
        "tags": [[0], [1, 2], [], [2]],
        "number": [3, None, -1, 7],
        "smiling": [True, False, None, True],
    }
    for name, values in columns.items():
        rows = rows.add_column(name, values)
    folder = write(tmp_path / "set" / "train-00000.parquet", rows).parent
    for column, kind in (("name", "string"), ("score", "float64"), ("tags", "List")):
        with raises_naming(UserError, f"column {column}", kind, f"hf:{folder}?label=COLUMN"):
            open_source(f"hf:{folder}?label={column}{options}")
    number = open_source(f"hf:{folder}?label=number{options}")
    assert labels(number) == [3, None, None, 7]
    found = labels(open_source(f"hf:{folder}?label=smiling{options}"))
    assert found == [1, 0, None, 1]
    assert all(type(label) is not bool for label in found)


def test_some_images_of_a_stream_are_read_in_its_order(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "set"
    write(folder / "train-00000.parquet", table(0, 9))
    stream = open_source(f"hf:{folder}?streaming=true")
    assert is_sequential(select_at_random(stream, 5, seed=0))
    assert not is_sequential(select_at_random(open_source(f"hf:{folder}"), 5, seed=0))


def test_a_stream_reads_each_row_group_once_and_copies_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "set"
    write(folder / "train-00000.parquet", table(0, 5))
    source = open_source(f"hf:{folder}?streaming=true")
    assert isinstance(source, ParquetSource)
    assert not list((tmp_path / "cache").rglob("*.arrow"))
    read: list[int] = []
    original = parquet._parquet

    class Counted:
        def __init__(self, data: Any) -> None:
            self.file = original(data)

        def read_row_group(self, group: int, **options: Any) -> Any:
            read.append(group)
            return self.file.read_row_group(group, **options)

    monkeypatch.setattr(parquet, "_parquet", Counted)
    for index in range(5):
        source.load(index)
    assert read == [0, 1, 2]
    (folder / "train-00000.parquet").write_bytes(b"PAR1")
    with raises_naming(JobError, "train-00000.parquet", "download it again"):
        source.load(0)


def test_a_stream_is_encoded_in_order_and_resumed_exactly(
    tmp_path: Path, encode_tiny: Callable[[str, Path, Path], Path], tiny_autoencoder: Path
) -> None:
    folder = tmp_path / "set"
    write(folder / "train-00000.parquet", table(0, 5))
    stream = f"hf:{folder}?streaming=true"
    store = encode_tiny(stream, tiny_autoencoder, tmp_path / "store")
    encoded = LatentStore(store)
    infos = [encoded.info(index) for index in range(len(encoded))]
    assert [info.key for info in infos] == [f"train/{row:08d}" for row in range(5)]
    assert [info.label for info in infos] == [0, 1, 2, 0, 1]
    shard = store / "latents-000000.tar"
    before = shard.read_bytes()
    shard.unlink()
    (store / "manifest.json").unlink()
    encode_tiny(stream, tiny_autoencoder, store)
    assert shard.read_bytes() == before


def test_references() -> None:
    assert parse_reference("owner/name") == DatasetReference(place="owner/name")
    assert parse_reference("owner/name:test") == DatasetReference(place="owner/name", split="test")
    assert parse_reference("name:small:test?image=mask&streaming=true") == DatasetReference(
        place="name", config="small", split="test", image="mask", streaming=True
    )
    assert parse_reference("name:small:") == DatasetReference(place="name", config="small")
    assert parse_reference("C:\\data\\set") == DatasetReference(place="C:\\data\\set")
    for wrong, named in (("a?imag=x", "imag"), ("a?streaming=yes", "streaming=yes")):
        with raises_naming(UserError, f"hf:{wrong}", named, "?image=COLUMN"):
            parse_reference(wrong)


def test_other_folders_are_refused_with_a_reason(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    with raises_naming(UserError, str(folder), "cannot be opened"):
        open_source(f"hf:{folder}")
    write(folder / "train-00000.parquet", table(0, 2))
    with raises_naming(UserError, str(folder), ".parquet", f"hf:{folder}"):
        open_source(folder)
    (folder / "train-00000.parquet").unlink()
    (folder / "train.csv").write_text("a,b\n1,2\n")
    with raises_naming(UserError, "no image column", "a, b"):
        open_source(f"hf:{folder}")
    with raises_naming(UserError, "train.csv", "parquet", "leave it out"):
        open_source(f"hf:{folder}?streaming=true")
