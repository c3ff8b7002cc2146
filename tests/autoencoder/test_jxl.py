"""The size of a JPEG XL file is known, and limited, before its plugin decodes the pixels."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from autoencoder.sources import decoding
from autoencoder.sources.decoding import UnreadableImage, decode_image
from autoencoder.sources.jxl import CODESTREAM, CONTAINER, jxl_size

Fields = list[tuple[int, int]]


def stream(*fields: tuple[int, int]) -> bytes:
    """A codestream whose header is these (value, bits), the lowest bit first."""
    number, place = 0, 0
    for value, bits in fields:
        number |= value << place
        place += bits
    return CODESTREAM + number.to_bytes(place // 8 + 1, "little") + bytes(20)


def box(kind: bytes, content: bytes) -> bytes:
    return (8 + len(content)).to_bytes(4, "big") + kind + content


GIANT: Fields = [(0, 1), (3, 2), (2**30 - 1, 30), (1, 3)]  # 2^30 a side, a square
SIZES = [
    ([(1, 1), (3, 5), (0, 3), (7, 5)], (64, 32)),  # small: multiples of 8
    ([(1, 1), (3, 5), (1, 3)], (32, 32)),
    ([(0, 1), (0, 2), (499, 9), (0, 3), (1, 2), (4999, 13)], (5000, 500)),
    ([(0, 1), (1, 2), (1079, 13), (5, 3)], (1920, 1080)),
    (GIANT, (2**30, 2**30)),
]


@pytest.mark.parametrize(("fields", "size"), SIZES)
def test_the_size_in_a_header(fields: Fields, size: tuple[int, int]) -> None:
    bare = stream(*fields)
    assert jxl_size(bare) == size
    assert jxl_size(CONTAINER + box(b"ftyp", b"jxl ") + box(b"jxlc", bare)) == size
    assert jxl_size(CONTAINER + box(b"jxlp", bytes(4) + bare)) == size


@pytest.mark.parametrize(
    "data",
    [b"", b"\xff", CONTAINER, CONTAINER + bytes(40), CONTAINER + b"\0\0\0\1jxlc", b"\x89PNG"],
)
def test_other_bytes_have_no_size(data: bytes) -> None:
    assert jxl_size(data) is None


def test_a_giant_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*arguments: object, **options: object) -> None:
        raise AssertionError("opened")

    monkeypatch.setattr(decoding.Image, "open", never)
    with pytest.raises(UnreadableImage, match="too large: 1073741824x1073741824"):
        decode_image(stream(*GIANT), "a.jxl")


@pytest.mark.parametrize("size", [(8, 8), (40, 24), (641, 480), (100, 7)])
def test_the_header_of_real_files(size: tuple[int, int]) -> None:
    pytest.importorskip("pillow_jxl", reason="pip install pillow-jxl-plugin")
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "JXL")
    assert jxl_size(buffer.getvalue()) == size
