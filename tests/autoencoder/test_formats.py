"""Every picture of a source is read, or counted by its suffix with the remedy."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from image_files import files, image_file, keys, write_folder, write_tar, write_zip
from messages import raises_naming
from PIL import Image, features

from autoencoder import models
from autoencoder.images import UnreadableImage, left_out, open_source
from autoencoder.sources import formats
from autoencoder.sources.decoding import decode_image
from autoencoder.store import LatentStore
from latentddm.cli import main
from latentddm.engine.errors import UserError

HEIC = b"\0\0\0\x18ftypheic" + bytes(12)  # the beginning of a file of a phone
JXL = b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(20)
HEIF_COMMAND, JXL_COMMAND = "pip install pillow-heif", "pip install pillow-jxl-plugin"


def forget() -> None:
    """Forget which packages are installed."""
    for function in (formats.installed, formats.read_formats, formats.image_suffixes):
        function.cache_clear()


@pytest.fixture
def without_packages(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A Pillow with AVIF, and neither pillow-heif nor pillow-jxl-plugin."""
    for package in ("pillow_heif", "pillow_jxl"):
        monkeypatch.setitem(sys.modules, package, None)
    forget()
    yield
    monkeypatch.undo()
    forget()


def ramp() -> Image.Image:
    """A ramp from left to right, 24 x 16 pixels."""
    grey = np.repeat(np.arange(0, 240, 10, np.uint8)[None], 16, 0)
    return Image.fromarray(grey).convert("RGB")


def avif() -> bytes:
    if not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    buffer = io.BytesIO()
    ramp().save(buffer, "AVIF", quality=95)
    return buffer.getvalue()


def phone() -> dict[str, bytes]:
    """What people have: two pictures that are read, and three that need a package or a tool."""
    return {
        "0.png": image_file(0),
        "a.avif": avif(),
        "phone.HEIC": HEIC,
        "more/phone2.heic": HEIC,
        "x.jxl": JXL,
        "x.cr2": b"raw",
        ".hidden.heic": b"",
        "notes.txt": b"",
    }


@pytest.mark.usefixtures("without_packages")
def test_pictures_that_are_not_read_are_counted_with_the_command_that_helps(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_folder(tmp_path / "images", phone())
    for place in (
        folder,
        write_zip(tmp_path / "images.zip", phone()),
        write_tar(tmp_path / "images.tar", {**phone(), "x.cls": b"1"}),
    ):
        caplog.clear()
        source = open_source(place)
        assert keys(source)[:2] == ["0.png", "a.avif"]
        counted = {(found.suffix, found.files, found.first) for found in left_out(source)}
        assert counted == {
            (".heic", 2, "more/phone2.heic"),
            (".jxl", 1, "x.jxl"),
            (".cr2", 1, "x.cr2"),
        }
        warned = caplog.messages[-1]
        assert all(part in warned for part in (str(place), HEIF_COMMAND, JXL_COMMAND, "x.cr2"))
    decoded = np.asarray(open_source(folder).load(1).image).astype(int)
    assert np.abs(decoded - np.asarray(ramp())).mean() < 6


@pytest.mark.usefixtures("without_packages")
def test_an_encoding_states_what_it_left_out_in_its_line_and_its_manifest(
    tmp_path: Path,
    tiny_autoencoder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(models, "check_reconstruction", lambda *arguments: None)
    images, store = write_folder(tmp_path / "images", phone()), tmp_path / "store"
    arguments = [
        *("encode", "--images", str(images), "--autoencoder", str(tiny_autoencoder)),
        *("--output", str(store), "--size", "32", "--workers", "0"),
    ]
    assert main(arguments) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert all(part in line for part in ("4 files", "2 .heic", HEIF_COMMAND, "1 .jxl", JXL_COMMAND))
    written = json.loads((store / "manifest.json").read_text())["plan"]["source"]["left_out"]
    assert {row["suffix"]: row["files"] for row in written} == {".heic": 2, ".jxl": 1, ".cr2": 1}
    (images / "x.cr2").unlink()  # no other plan: the encoded images are the same
    assert main(arguments) == 0
    assert len(LatentStore(store)) == 2


@pytest.mark.usefixtures("without_packages")
def test_nothing_but_pictures_that_are_not_read_is_refused_with_the_command(tmp_path: Path) -> None:
    content = {"a.heic": HEIC, "b.heic": HEIC}
    for place in (
        write_folder(tmp_path / "images", content),
        write_zip(tmp_path / "images.zip", content),
        write_tar(tmp_path / "images.tar", content),
    ):
        with raises_naming(UserError, str(place), "2 .heic", HEIF_COMMAND):
            open_source(place)


@pytest.mark.usefixtures("without_packages")
@pytest.mark.parametrize(("data", "named"), [(HEIC, HEIF_COMMAND), (JXL, JXL_COMMAND)])
def test_a_file_under_a_wrong_suffix_is_unreadable_with_the_command(
    data: bytes, named: str
) -> None:
    with pytest.raises(UnreadableImage, match=named):
        decode_image(data, "IMG_0001.jpg")


def test_a_source_without_other_pictures_has_a_plan_as_before(
    tmp_path: Path, tiny_store: Path
) -> None:
    assert left_out(open_source(write_folder(tmp_path / "images", files()))) == ()
    assert "left_out" not in (tiny_store / "manifest.json").read_text()


@pytest.mark.parametrize(
    ("package", "suffix", "kind"),
    [("pillow_heif", ".heic", "HEIF"), ("pillow_jxl", ".jxl", "JXL")],
)
def test_with_its_package_a_format_is_read_upright(
    package: str, suffix: str, kind: str, tmp_path: Path
) -> None:
    pytest.importorskip(package)
    forget()
    assert kind in formats.read_formats()
    image = ramp()
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=95, exif=exif.tobytes())
    source = open_source(write_folder(tmp_path / "images", {f"a{suffix}": buffer.getvalue()}))
    assert left_out(source) == ()
    loaded = source.load(0).image
    # A JXL file has the orientation in its own header, and its EXIF block has no effect.
    assert loaded.size == ((16, 24) if kind == "HEIF" else (24, 16))
    turned = image.transpose(Image.Transpose.ROTATE_270) if kind == "HEIF" else image
    difference = np.asarray(loaded).astype(int) - np.asarray(turned).astype(int)
    assert np.abs(difference).mean() < 6
