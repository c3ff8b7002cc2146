"""Sheets of pictures: their download is the pictures themselves, and so is what the page shows."""

from __future__ import annotations

import base64
import io
import json
import re
import zipfile

import numpy as np
import pytest
from PIL import Image

from latentddm.play.markup import problem_html, sheet_html, title_html
from latentddm.play.sheet import Row, Sheet


def random_row(name: str, count: int, edge: int, title: str = "Row") -> Row:
    generator = np.random.default_rng(count)
    pixels = generator.integers(0, 256, (count, edge, edge, 3), dtype=np.uint8)
    return Row(name, title, "explanation", pixels, tuple(f"picture {i}" for i in range(count)))


def sheet(edge: int = 32, title: str = "Row") -> Sheet:
    rows = (random_row("first", 2, edge, title), random_row("second", 3, edge))
    return Sheet("name", rows, {"seed": 7})


def decoded(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def test_the_download_holds_every_picture_at_native_resolution() -> None:
    whole = sheet()
    with zipfile.ZipFile(io.BytesIO(whole.archive())) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    assert json.loads(files.pop("settings.json")) == {"seed": 7}
    grid = decoded(files.pop("grid.png"))
    assert grid.shape == (2 * 32 + 2, 3 * 32 + 2 * 2, 3)
    assert np.array_equal(grid[34:, 34:66], whole.rows[1].pixels[1])
    assert (grid[:32, 68:] == 255).all()  # the first row is one picture shorter
    expected = {
        f"{row.name}-{index}.png": picture
        for row in whole.rows
        for index, picture in enumerate(row.pixels)
    }
    assert files.keys() == expected.keys()
    for name, picture in expected.items():
        assert np.array_equal(decoded(files[name]), picture)


def test_the_page_holds_the_same_pixels_in_the_order_of_the_rows() -> None:
    whole = sheet()
    sources = re.findall(r'src="data:image/png;base64,([^"]+)"', sheet_html(whole))
    shown = np.stack([decoded(base64.b64decode(source)) for source in sources])
    assert np.array_equal(shown, np.concatenate([row.pixels for row in whole.rows]))


@pytest.mark.parametrize("edge", [16, 32, 48, 64, 96, 127, 128, 200, 256, 300])
def test_pictures_are_at_least_256_wide_and_enlarged_by_whole_factors(edge: int) -> None:
    html = sheet_html(sheet(edge))
    least, most, unit = (
        int(re.search(rf"--{name}: (\d+)px", html)[1]) for name in ("least", "most", "unit")
    )
    assert 256 <= least <= most
    if edge < 256:
        assert unit == edge
        assert least % edge == 0
    assert ("pixelated" in html) == (edge < 128)


def test_text_from_outside_is_no_markup() -> None:
    wicked = "<script>alert(1)</script>"
    for html in (sheet_html(sheet(title=wicked)), problem_html(wicked), title_html(wicked, 1)):
        assert "<script>" not in html
        assert "&lt;script&gt;" in html


def test_captions_that_do_not_match_the_pictures_are_refused() -> None:
    with pytest.raises(ValueError, match=r"2 .*1"):
        Row("row", "Row", "", np.zeros((2, 8, 8, 3), np.uint8), ("one",))
