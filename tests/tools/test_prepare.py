"""CelebA-HQ and LSUN as downloaded become complete, labelled tar shards, also after a kill."""

from __future__ import annotations

import importlib
import io
import json
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import webdataset
from messages import assert_names
from PIL import Image

from autoencoder.images import ImageSource, Preprocessing, open_source, read_pixels

TOOLS = Path(__file__).parents[2] / "tools"
Tool = Callable[..., int]

# (number in CelebA-HQ, number of CelebA's file, split, Smiling)
PEOPLE = [(0, 119_614, "train", 1), (1, 99_094, "train", -1), (2, 162_771, "val", 1)] + [
    (number, 190_000 + number, "test", -1) for number in range(3, 12)
]


@pytest.fixture
def celebahq(monkeypatch: pytest.MonkeyPatch) -> Tool:
    return _tool("prepare_celebahq", monkeypatch)


@pytest.fixture
def lsun(monkeypatch: pytest.MonkeyPatch) -> Tool:
    pytest.importorskip("lmdb")
    return _tool("prepare_lsun", monkeypatch)


def _tool(name: str, monkeypatch: pytest.MonkeyPatch) -> Tool:
    monkeypatch.syspath_prepend(str(TOOLS))
    module = importlib.import_module(name)
    return lambda *arguments: module.main([*map(str, arguments), "--workers", "0"])


def picture(seed: int, size: tuple[int, int], kind: str) -> bytes:
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    image = Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)
    image.save(buffer, kind, quality=75)
    return buffer.getvalue()


def mask_download() -> dict[str, bytes]:
    """The files of CelebAMask-HQ, small."""
    header = "idx\torig_idx\torig_file\n"
    rows = [f"{n}\t\t{orig - 1}\t\t{orig:06d}.jpg\n" for n, orig, _, _ in PEOPLE]
    anno = f"{len(PEOPLE)}\nMale Smiling Young\n" + "".join(
        f"{n}.jpg  -1  {smiling}  1\n" for n, _, _, smiling in PEOPLE
    )
    home = "CelebAMask-HQ"
    mask = Image.new("L", (32, 32), 255)
    buffer = io.BytesIO()
    mask.save(buffer, "PNG")
    return {
        **{f"{home}/CelebA-HQ-img/{n}.jpg": picture(n, (64, 64), "JPEG") for n, *_ in PEOPLE},
        f"{home}/CelebAMask-HQ-mask-anno/0/00000_hair.png": buffer.getvalue(),
        f"{home}/CelebA-HQ-to-CelebA-mapping.txt": (header + "".join(rows)).encode(),
        f"{home}/CelebAMask-HQ-attribute-anno.txt": anno.encode(),
        f"{home}/README.txt": b"about",
    }


def put(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def put_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def lsun_folder(folder: Path, count: int = 7, broken: tuple[int, ...] = ()) -> Path:
    """An LSUN category: webp values of 256 pixels at the short side, keys of 40 hex digits."""
    lmdb = pytest.importorskip("lmdb")
    with lmdb.open(str(folder), map_size=1 << 24) as database, database.begin(write=True) as writer:
        for number in range(count):
            data = b"lost" if number in broken else picture(number, (48 + number, 40), "WEBP")
            writer.put(f"{number:040x}".encode(), data)
    return folder


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    """The last line on stderr, after the progress."""
    return capsys.readouterr().err.strip().splitlines()[-1]


def keys(source: ImageSource) -> list[str]:
    return [source.key(index) for index in range(len(source))]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("form", ["folder around", "folder", "zip"])
def test_celebamask_hq_gives_the_faces_without_the_masks(
    form: str, celebahq: Tool, tmp_path: Path
) -> None:
    place = tmp_path / "download"
    if form == "zip":
        source = put_zip(tmp_path / "CelebAMask-HQ.zip", mask_download())
    else:
        source = put(place, mask_download())
        source = source / "CelebAMask-HQ" if form == "folder" else source
    assert celebahq(source, tmp_path / "out", "--size", 32, "--images-per-shard", 5) == 0
    prepared = open_source(tmp_path / "out")
    assert [Path(key).name for key in keys(prepared)] == [f"{n}.png" for n, *_ in PEOPLE]
    faces = open_source(put(place, mask_download()) / "CelebAMask-HQ" / "CelebA-HQ-img")
    expected, _ = read_pixels(faces, Preprocessing(size=32))
    np.testing.assert_array_equal(read_pixels(prepared, Preprocessing(size=32))[0], expected)
    assert sorted(path.name for path in (tmp_path / "out").glob("*.tar")) == [
        f"images-{number:06d}.tar" for number in range(3)
    ]


def test_splits_and_labels_are_those_of_the_annotation(celebahq: Tool, tmp_path: Path) -> None:
    source = put_zip(tmp_path / "CelebAMask-HQ.zip", mask_download())
    for split in ("train", "val", "test"):
        output = tmp_path / split
        options = ("--size", 16, "--split", split, "--label-attribute", "Smiling")
        assert celebahq(source, output, *options) == 0
        prepared = open_source(output)
        expected = {n: int(smiling == 1) for n, _, part, smiling in PEOPLE if part == split}
        found = {int(Path(prepared.key(i)).stem): prepared.label(i) for i in range(len(prepared))}
        assert found == expected


def test_a_plain_folder_and_a_plain_zip_work(celebahq: Tool, tmp_path: Path) -> None:
    files = {f"{number:05d}.png": picture(number, (40, 40), "PNG") for number in range(1, 4)}
    assert celebahq(put(tmp_path / "faces", files), tmp_path / "a", "--size", 16) == 0
    assert celebahq(put_zip(tmp_path / "faces.zip", files), tmp_path / "b", "--size", 16) == 0
    assert (tmp_path / "a" / "images-000000.tar").read_bytes() == (
        tmp_path / "b" / "images-000000.tar"
    ).read_bytes()


def test_names_in_shards_are_unique_and_have_no_parent_folders(
    celebahq: Tool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = picture(0, (16, 16), "PNG")
    source = put_zip(tmp_path / "a.zip", {"../../x.y.png": image, "d.e/x.png": image})
    assert celebahq(source, tmp_path / "out", "--size", 16) == 0
    assert keys(open_source(tmp_path / "out")) == ["x_y.png", "d.e/x.png"]
    source = put(tmp_path / "twins", {"x.png": image, "x.jpg": image})
    assert celebahq(source, tmp_path / "other", "--size", 16) == 2
    assert_names(error_of(capsys), "x.png", "x.jpg")


def test_webdataset_reads_the_shards(celebahq: Tool, tmp_path: Path) -> None:
    source = put(tmp_path / "download", mask_download())
    assert celebahq(source, tmp_path / "out", "--size", 16, "--label-attribute", "Smiling") == 0
    url = str(tmp_path / "out" / "images-000000.tar")
    samples = list(webdataset.WebDataset(url, shardshuffle=False).decode("rgb8"))
    assert len(samples) == len(PEOPLE)
    assert samples[0]["png"].shape == (16, 16, 3)
    assert [sample["cls"] for sample in samples] == [int(p[3] == 1) for p in PEOPLE]


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_lsun_gives_centre_squares(form: str, lsun: Tool, tmp_path: Path) -> None:
    folder = lsun_folder(tmp_path / "church_train_lmdb")
    source = folder
    if form == "zip":
        names = {f"{folder.name}/{path.name}": path.read_bytes() for path in folder.iterdir()}
        source = put_zip(tmp_path / "church_train_lmdb.zip", names)
    options = ("--size", 32, "--file-format", "png")
    assert lsun(source, tmp_path / "out" / "church", *options) == 0
    prepared = open_source(tmp_path / "out" / "church")
    assert [Path(key).stem for key in keys(prepared)] == [f"{n:040x}" for n in range(7)]
    found, _ = read_pixels(prepared, Preprocessing(size=32))
    original = Image.open(io.BytesIO(picture(6, (54, 40), "WEBP"))).convert("RGB")
    square = original.crop((7, 0, 47, 40)).resize((32, 32), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(found[6], np.asarray(square))


def test_unreadable_images_are_printed_and_recorded(
    lsun: Tool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = lsun_folder(tmp_path / "lmdb", broken=(2, 5))
    assert lsun(folder, tmp_path / "out", "--size", 16, "--images-per-shard", 3) == 0
    printed = capsys.readouterr().out
    assert "5 images in 3 shards" in printed
    assert printed.count("unreadable: ") == 2
    record = json.loads((tmp_path / "out" / "prepared.json").read_text())
    assert [shard["images"] for shard in record["shards"]] == [2, 2, 1]
    assert record["shards"][1]["unreadable"][0]["key"] == f"{5:040x}"
    assert len(open_source(tmp_path / "out")) == 5


def test_an_interrupted_preparation_resumes_and_ends_bit_equal(
    lsun: Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = lsun_folder(tmp_path / "lmdb", count=20, broken=(4,))
    options = ("--size", 16, "--images-per-shard", 4)
    assert lsun(folder, tmp_path / "whole", *options) == 0
    whole = contents(tmp_path / "whole")
    shards = importlib.import_module("autoencoder.image_shards")
    write_shard = shards._write_shard
    written: list[str] = []

    def stop_at_three(path: Path, *rest: object) -> object:
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(path.name)
        return write_shard(path, *rest)

    output = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(shards, "_write_shard", stop_at_three)
        assert lsun(folder, output, *options) == 128 + signal.SIGINT
    (output / "images-000003.tar.99.partial").write_bytes(b"of a killed process")
    finished = {path.name: path.stat().st_mtime_ns for path in output.glob("*.tar")}
    assert len(finished) == 3
    assert lsun(folder, output, *options) == 0
    assert contents(output) == whole
    assert all((output / name).stat().st_mtime_ns == time for name, time in finished.items())
    (output / "images-000001.tar").unlink()
    assert lsun(folder, output, *options) == 0
    assert contents(output) == whole


def test_a_preparation_resumes_after_a_kill_before_the_first_record(
    lsun: Tool, tmp_path: Path
) -> None:
    folder = lsun_folder(tmp_path / "lmdb")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "prepared.json.99.partial").write_text("{")
    assert lsun(folder, tmp_path / "out", "--size", 16) == 0
    assert sorted(contents(tmp_path / "out")) == ["images-000000.tar", "prepared.json"]


def test_other_settings_are_not_mixed_into_earlier_shards(
    lsun: Tool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = lsun_folder(tmp_path / "lmdb")
    assert lsun(folder, tmp_path / "out", "--size", 16) == 0
    assert lsun(folder, tmp_path / "out", "--size", 24) == 2
    assert_names(error_of(capsys), str(tmp_path / "out"), "preprocessing")


def test_other_labels_are_not_mixed_into_earlier_shards(
    celebahq: Tool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = put(tmp_path / "download", mask_download())
    options = ("--size", 16)
    assert celebahq(source, tmp_path / "out", *options, "--label-attribute", "Smiling") == 0
    for labels in (["--label-attribute", "Male"], []):
        assert celebahq(source, tmp_path / "out", *options, *labels) == 2
        assert_names(error_of(capsys), str(tmp_path / "out"), "another")


def test_wrong_requests_end_with_2_and_one_sentence(
    celebahq: Tool, lsun: Tool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    download = put(tmp_path / "download", mask_download())
    plain = put(tmp_path / "plain", {"1.png": picture(1, (16, 16), "PNG")})
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("keep")
    out = tmp_path / "out"
    empty = put_zip(tmp_path / "a.zip", {"x": b""})
    for tool, arguments, named in (
        (celebahq, (tmp_path / "gone", out), [str(tmp_path / "gone"), "give a folder"]),
        (celebahq, (download, out, "--label-attribute", "Smilng"), ["Smilng", "Smiling"]),
        (celebahq, (plain, out, "--split", "val"), [str(plain), "mapping.txt", "CelebAMask-HQ"]),
        (celebahq, (plain, tmp_path / "full"), [str(tmp_path / "full"), "empty folder"]),
        (celebahq, (plain, out, "--size", 2), ["size", "2"]),
        (celebahq, (plain, out, "--images-per-shard", 0), ["images_per_shard", "at least one"]),
        (lsun, (plain, out), [str(plain), "data.mdb", "give the download"]),
        (lsun, (empty, out), [str(empty), "data.mdb", "one LSUN category"]),
    ):
        assert tool(*arguments) == 2
        assert_names(error_of(capsys), *named)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.tex"]


def test_damage_ends_with_1(lsun: Tool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = lsun_folder(tmp_path / "lmdb", broken=tuple(range(7)))
    assert lsun(folder, tmp_path / "out", "--size", 16) == 1
    assert_names(error_of(capsys), str(folder), "check the download")
    archive = put_zip(tmp_path / "lsun.zip", {"lsun/data.mdb": (folder / "data.mdb").read_bytes()})
    damaged = bytearray(archive.read_bytes())
    damaged[2000] ^= 1
    archive.write_bytes(damaged)
    assert lsun(archive, tmp_path / "other", "--size", 16) == 1
    assert_names(error_of(capsys), str(archive), "damaged", "download it again")
    assert not (tmp_path / "other-lmdb").exists()


def test_the_scripts_run_from_a_checkout(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(TOOLS / "prepare_celebahq.py"), str(tmp_path), str(tmp_path / "o")],
        cwd=TOOLS.parent,
        env={"PYTHONPATH": str(TOOLS.parent), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 2
    assert_names(done.stderr, str(tmp_path), "it is empty")
