"""Strategies of hypothesis: images of any mode and format, archives, damage to bytes or JSON.

The same draws give the same bytes, whatever the clock says: else hypothesis refuses a strategy.
"""

from __future__ import annotations

import gzip
import io
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st
from PIL import Image

from autoencoder.sources.formats import read_formats

MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "I;16", "F")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "HEIF", "JXL", "PPM", "ICO")
SUFFIXES = (".png", ".jpg", ".JPEG", ".webp", ".bmp", ".tif", ".gif", ".avif", ".heic", ".jxl")
SIDES = st.sampled_from((1, 7, 8, 9, 16, 33))
NAMES = st.one_of(
    st.builds(
        lambda stem, suffix: stem + suffix,
        st.text(st.characters(blacklist_characters="\0"), max_size=8),
        st.sampled_from((*SUFFIXES, ".cls", ".json", ".txt", "")),
    ),
    st.sampled_from(
        (
            *("../out.png", "/etc/passwd.png", "a/../../b.jpg", "a//b.png", "./a.png", "..png"),
            *("9" * 5000 + ".png", "a/b/c.png", ".hidden.png", "__MACOSX/a.png", "a.seg.png"),
            *("it\udc92s.jpg", "\udcff.png", "x" * 300 + ".png", "a\\b.png", "CON.png", " .png"),
        )
    ),
)


@st.composite
def image_files(draw: st.DrawFn) -> bytes:
    """An image file of any mode, format and size, possibly animated, rotated or transparent."""
    size = (draw(SIDES), draw(SIDES))
    format = draw(st.sampled_from(tuple(f for f in FORMATS if f in read_formats() or f in _PLAIN)))
    image = _image(draw(st.sampled_from(MODES)), size, draw(st.integers(0, 9)))
    options: dict[str, Any] = {}
    if draw(st.booleans()):
        exif = Image.Exif()
        exif[0x0112] = draw(st.integers(0, 9))
        options["exif"] = exif
    if format in ("GIF", "WEBP", "TIFF") and draw(st.booleans()):
        options |= {"save_all": True, "append_images": [image.copy()]}
    if draw(st.booleans()):
        options["transparency"] = 0
    for attempt in (image, image.convert("RGB") if image.mode != "F" else image.convert("L")):
        buffer = io.BytesIO()
        profile = attempt.info.get("icc_profile")
        if profile:  # bytes 24 to 35 are the second it was made in
            attempt.info["icc_profile"] = profile[:24] + bytes(12) + profile[36:]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                attempt.save(buffer, format, **options)
        except Exception:  # a mode that the format lacks
            options = {}
            continue
        return buffer.getvalue()
    return b""


_PLAIN = ("PPM", "ICO")


def _image(mode: str, size: tuple[int, int], seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    if mode == "LAB":
        from PIL import ImageCms

        srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        return ImageCms.profileToProfile(image, srgb, lab, outputMode="LAB")  # type: ignore[return-value]
    if mode in ("PA", "I;16"):
        return image.convert("RGBA" if mode == "PA" else "L").convert(
            "PA" if mode == "PA" else "I;16"
        )
    return image.convert(mode)


@st.composite
def damaged(draw: st.DrawFn, files: st.SearchStrategy[bytes]) -> bytes:
    """Bytes with up to three kinds of damage; often none."""
    data = bytearray(draw(files))
    for _ in range(draw(st.integers(0, 3))):
        if not data:
            break
        place = draw(st.integers(0, len(data) - 1))
        kind = draw(st.sampled_from(("flip", "cut", "zeros", "insert", "repeat", "value")))
        if kind == "flip":
            data[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del data[place:]
        elif kind == "zeros":
            data[place : place + 40] = bytes(len(data[place : place + 40]))
        elif kind == "insert":
            data[place:place] = draw(st.binary(min_size=1, max_size=9))
        elif kind == "repeat":
            data[place:place] = data[place : place + 600]
        else:
            extreme = draw(st.sampled_from((0, 1, 0x7FFFFFFF, 0xFFFFFFFF)))
            data[place : place + 4] = extreme.to_bytes(4, draw(st.sampled_from(("big", "little"))))
    return bytes(data)


@st.composite
def archives(draw: st.DrawFn) -> tuple[str, bytes]:
    """(suffix, bytes) of a zip or a tar with members of any name and kind, possibly damaged."""
    content = st.one_of(
        damaged(image_files()), st.sampled_from((b"", b"7", b'{"label": 3}', b"[" * 5000, b"x"))
    )
    members = draw(st.lists(st.tuples(NAMES, content), max_size=5))
    suffix = draw(st.sampled_from((".zip", ".tar", ".tar.gz")))
    make = _zip if suffix == ".zip" else _tar(draw, suffix)
    return suffix, draw(damaged(st.just(make(members))))


def _zip(members: list[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w") as archive:
        warnings.simplefilter("ignore")  # of a name twice
        for name, data in members:
            member = zipfile.ZipInfo(name.encode("utf-8", "ignore").decode() or "x")  # of 1980
            archive.writestr(member, data, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def _tar(draw: st.DrawFn, suffix: str) -> Callable[[list[tuple[str, bytes]]], bytes]:
    kind = draw(st.sampled_from((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)))
    kinds = st.sampled_from(
        (
            *(tarfile.REGTYPE,) * 4,
            *(tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE),
            tarfile.GNUTYPE_SPARSE,
        )
    )

    def make(members: list[tuple[str, bytes]]) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=kind) as archive:
            for name, data in members:
                member = tarfile.TarInfo(name)
                member.type = draw(kinds)
                member.linkname = "../../outside.png"
                member.size = len(data) if member.isreg() else 0
                try:
                    archive.addfile(member, io.BytesIO(data))
                except (ValueError, UnicodeError):  # a name that the format lacks
                    continue
        data = buffer.getvalue()
        return gzip.compress(data, mtime=0) if suffix == ".tar.gz" else data

    return make


JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.sampled_from((0, -1, 1, 2**31, 2**63, 10**30, 1e308, float("inf"), float("nan"))),
        st.sampled_from(("", "../x", "latents", "float16", "\udc92", "/etc/passwd", "${a}", "???")),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=4,
)


@st.composite
def changed(draw: st.DrawFn, value: Any) -> Any:
    """A JSON value with one to three of its parts replaced or removed."""
    value = _copy(value)
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(value))
        if not places:
            return draw(JSON)
        holder, key = places[draw(st.integers(0, len(places) - 1))]
        if draw(st.booleans()):
            holder[key] = draw(JSON)
        elif isinstance(holder, dict):
            del holder[key]
        else:
            holder.append(draw(JSON))
    return value


def _places(value: Any) -> Any:
    parts = value.items() if isinstance(value, dict) else enumerate(value)
    for key, part in parts:
        yield value, key
        if isinstance(part, dict | list):
            yield from _places(part)


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(part) for key, part in value.items()}
    return [_copy(part) for part in value] if isinstance(value, list) else value
