"""Decoding of image files to upright 8-bit RGB, reasons for unreadable ones, preprocessing."""

from __future__ import annotations

import io
import pickle
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from autoencoder.images import Preprocessing, UnreadableImage, open_source, read_pixels
from autoencoder.sources.decoding import decode_image
from latentddm.engine.errors import UserError

SIZE = (16, 12)  # width, height


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(data: bytes) -> np.ndarray:
    image = decode_image(data, "key")
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def ramp() -> np.ndarray:
    """Smooth colours, which lossy formats keep closely."""
    rows, columns = np.mgrid[0 : SIZE[1], 0 : SIZE[0]]
    colours = np.stack([20 * rows, 15 * columns, 255 - 10 * (rows + columns)], -1)
    return colours.clip(0, 255).astype(np.uint8)


def png_16_bit(values: np.ndarray) -> bytes:
    """A 16-bit RGB or grey PNG, written by hand since PIL cannot write 16-bit RGB."""
    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    colour = 2 if values.ndim == 3 else 0
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(
    ("kind", "options", "tolerance"),
    [
        ("PNG", {}, 0),
        ("BMP", {}, 0),
        ("TIFF", {}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("WEBP", {"quality": 95}, 24),  # colour at half the resolution, always
        ("JPEG", {"quality": 98, "subsampling": 0}, 8),
    ],
)
def test_common_formats(kind: str, options: dict[str, Any], tolerance: int) -> None:
    data = saved(Image.fromarray(ramp()), kind, **options)
    assert np.abs(decoded(data) - ramp()).max() <= tolerance


def test_grey_and_black_and_white() -> None:
    grey = ramp()[..., 0]
    np.testing.assert_array_equal(
        decoded(saved(Image.fromarray(grey), "PNG")), np.repeat(grey[..., None], 3, -1)
    )
    binary = Image.fromarray(grey).point(lambda value: 255 * (value > 100)).convert("1")
    assert set(decoded(saved(binary, "PNG")).flat) == {0, 255}


def test_palette() -> None:
    image = Image.fromarray(ramp()).quantize(16)
    np.testing.assert_array_equal(decoded(saved(image, "PNG")), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_images_are_composed_over_white(mode: str) -> None:
    alpha = np.full(SIZE[::-1], 255, dtype=np.uint8)
    alpha[:6], alpha[6:9] = 0, 128
    image = Image.new("L", SIZE, 40).convert(mode)
    image.putalpha(Image.fromarray(alpha))
    pixels = decoded(saved(image, "PNG"))
    assert (pixels[:6] == 255).all()
    assert np.abs(pixels[6:9] - (40 * 128 + 255 * 127) / 255).max() <= 1
    assert (pixels[9:] == 40).all()


@pytest.mark.parametrize(
    ("image", "transparent"),
    [
        (Image.fromarray(np.zeros(SIZE[::-1], np.uint8), "L"), 0),
        (Image.new("RGB", SIZE), (0, 0, 0)),
        (Image.new("P", SIZE, 1), 1),
        (Image.new("P", SIZE, 1), b"\xff\x00"),
    ],
    ids=["grey", "rgb", "palette index", "palette table"],
)
def test_a_transparent_colour_becomes_white(image: Image.Image, transparent: Any) -> None:
    if image.mode == "P":
        image.putpalette([0, 0, 0, 10, 20, 30])
    assert (decoded(saved(image, "PNG", transparency=transparent)) == 255).all()


def test_cmyk_keeps_its_colours() -> None:
    image = Image.fromarray(ramp()).convert("CMYK")
    assert np.abs(decoded(saved(image, "JPEG", quality=98)) - ramp()).max() <= 16
    assert np.abs(decoded(saved(image, "TIFF")) - ramp()).max() <= 1


def test_sixteen_bit_grey_is_scaled_and_not_clipped() -> None:
    values = np.linspace(0, 65535, SIZE[0] * SIZE[1]).astype(np.uint16).reshape(SIZE[::-1])
    expected = np.repeat(np.rint(values / 257).astype(int)[..., None], 3, -1)
    np.testing.assert_array_equal(decoded(png_16_bit(values)), expected)
    np.testing.assert_array_equal(decoded(saved(Image.fromarray(values), "TIFF")), expected)


def test_sixteen_bit_colour_is_within_one_level() -> None:
    values = np.random.default_rng(0).integers(0, 65536, (*SIZE[::-1], 3))
    assert np.abs(decoded(png_16_bit(values)) - np.rint(values / 257)).max() <= 1


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_an_animation_gives_its_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", SIZE, colour) for colour in ("red", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert (decoded(data) == [255, 0, 0]).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_orientation_is_applied(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(ramp())
    pixels = decoded(saved(image, kind, exif=exif, quality=98, subsampling=0))
    turns: dict[int, Callable[[np.ndarray], np.ndarray]] = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
        8: np.rot90,
    }
    turned = turns[orientation](ramp())
    assert pixels.shape == turned.shape
    assert np.abs(pixels - turned).max() <= 8


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_an_image_with_a_torn_exif_block_is_readable() -> None:
    data = saved(Image.fromarray(ramp()), "PNG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff\x01")
    np.testing.assert_array_equal(decoded(data), ramp())


UNREADABLE = {
    "empty.png": (b"", "the file is empty"),
    "one.png": (saved(Image.new("RGB", (1, 1)), "PNG"), "too small: 1x1"),
    "line.png": (saved(Image.new("RGB", (100, 7)), "PNG"), "too small: 100x7"),
    "text.png": (b"<html>404</html>", "not an image in a known format"),
    "page.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
    "cut.jpg": (saved(Image.effect_noise((64, 64), 90), "JPEG")[:-200], "truncated"),
    "cut.png": (saved(Image.effect_noise((64, 64), 90), "PNG")[:-900], "truncated"),
    "float.tif": (saved(Image.new("F", SIZE, 0.5), "TIFF"), "floating point"),
    "wide.tif": (saved(Image.new("I", SIZE, 70_000), "TIFF"), "32-bit integers"),
    "bomb.png": (saved(Image.new("1", (9500, 9500)), "PNG"), "too large: 9500x9500"),
    "bigger.png": (saved(Image.new("1", (14_000, 14_000)), "PNG"), "too large"),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", UNREADABLE)
def test_unusable_files_have_a_reason(name: str) -> None:
    data, reason = UNREADABLE[name]
    with pytest.raises(UnreadableImage, match=reason) as caught:
        decode_image(data, name)
    assert caught.value.key == name
    assert " at 0x" not in caught.value.reason  # a memory address would differ between manifests
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.key, again.reason) == (name, caught.value.reason)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_are_counted_and_listed(workers: int, tmp_path: Path) -> None:
    for name, (data, _) in UNREADABLE.items():
        (tmp_path / name).write_bytes(data)
    for number in range(3):
        (tmp_path / f"good{number}.png").write_bytes(saved(Image.fromarray(ramp()), "PNG"))
    source = open_source(tmp_path)
    assert len(source) == len(UNREADABLE) + 3
    pixels, unreadable = read_pixels(source, Preprocessing(size=8), workers=workers)
    assert pixels.shape == (3, 8, 8, 3)
    assert [image.key for image in unreadable] == sorted(UNREADABLE)


def test_a_deleted_file_is_unreadable(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(saved(Image.fromarray(ramp()), "PNG"))
    source = open_source(tmp_path)
    (tmp_path / "a.png").unlink()
    with pytest.raises(UnreadableImage, match=r"a\.png: cannot be read: No such file"):
        source.load(0)


# ---- preprocessing


def test_the_crop_is_the_centre_square() -> None:
    pixels = np.zeros((20, 40, 3), dtype=np.uint8)
    pixels[:, 10:30] = ramp()[0, :1]
    pixels[:, 10:30, 0] = np.arange(20)[:, None] * 10
    cropped = Preprocessing(size=20).to_pixels(Image.fromarray(pixels))
    np.testing.assert_array_equal(cropped, pixels[:, 10:30])
    upright = Preprocessing(size=20).to_pixels(Image.fromarray(pixels.transpose(1, 0, 2)))
    np.testing.assert_array_equal(upright, pixels[:, 10:30].transpose(1, 0, 2))


def test_shrinking_is_anti_aliased() -> None:
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    small = Preprocessing(size=8).to_pixels(Image.fromarray(stripes)).astype(int)
    assert np.abs(small - 127.5).max() <= 12  # one line in two: grey, never black or white


def test_the_filter_uses_no_pixels_beyond_the_crop() -> None:
    pixels = np.full((64, 128, 3), 255, dtype=np.uint8)
    pixels[:, 32:96] = 40
    assert (Preprocessing(size=8).to_pixels(Image.fromarray(pixels)) == 40).all()


def test_small_images_are_enlarged() -> None:
    large = Preprocessing(size=64).to_pixels(Image.fromarray(ramp()))
    assert large.shape == (64, 64, 3)
    assert large.dtype == np.uint8


def test_the_description_has_every_setting_and_wrong_ones_are_refused() -> None:
    assert Preprocessing(size=256).describe() == {
        "size": 256,
        "crop": "center",
        "filter": "lanczos",
        "version": 1,
    }
    with pytest.raises(UserError, match="size is 4"):
        Preprocessing(size=4)
    with pytest.raises(UserError, match="'none'"):
        Preprocessing(size=64, crop="none")  # type: ignore[arg-type]
