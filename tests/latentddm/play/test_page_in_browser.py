"""The page in a real browser: sizes as displayed, one picture alone, the download, the tabs."""

from __future__ import annotations

import io
import shutil
import socket
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from latentddm.play import serving

pytestmark = pytest.mark.slow
EDGE = 32  # of the tiny run's pictures
SECONDS = 60_000  # of patience, in ms
# Nothing is fetched from outside, and nothing is left in a profile.
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


@pytest.fixture(scope="module")
def address(ddm_run: Path) -> Iterator[str]:
    pytest.importorskip("gradio", reason="pip install 'latentddm[play]'")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with serving(ddm_run, port=port) as address:
        yield address


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium is installed")
    with playwright.sync_playwright() as driver:
        profile = tmp_path_factory.mktemp("profile")
        context = driver.chromium.launch_persistent_context(
            str(profile), executable_path=path, args=ARGUMENTS
        )
        context.set_default_timeout(SECONDS)
        yield context
        context.close()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    page = browser.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on(
        "request",
        lambda request: (
            None
            if request.url.startswith((address, "data:", "blob:"))
            else problems.append(f"asks {request.url}")
        ),
    )
    page.goto(address)
    page.locator(".sheet img").first.wait_for()
    yield page
    page.close()
    assert not problems


def set_number(page: Any, label: str, value: str) -> None:
    field = page.get_by_label(label, exact=True)
    field.fill(value)
    field.press("Enter")


def wait_for_new(page: Any, source: str) -> None:
    page.wait_for_function(
        "source => document.querySelector('.sheet figure img')?.src != source", arg=source
    )


@pytest.mark.parametrize("width", [800, 1280])
def test_every_picture_is_displayed_at_256_pixels_or_more_without_smoothing(
    page: Any, width: int
) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    pictures = page.locator(".sheet figure img")
    assert pictures.count() == 8  # four of DDM, four of the mean
    for picture in pictures.all():
        box = picture.bounding_box()
        assert box["width"] >= 256
        assert box["width"] == box["height"]
        assert box["width"] % EDGE == 0
        assert picture.evaluate("image => getComputedStyle(image).imageRendering") == "pixelated"
    # Only the rows scroll sideways, not the page.
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_click_shows_one_picture_alone_and_larger_until_the_next_click_or_escape(
    page: Any,
) -> None:
    page.set_viewport_size({"width": 1280, "height": 900})
    thumb = page.locator("figure button").nth(1)
    for close in (
        lambda: page.keyboard.press("Escape"),
        lambda: page.locator("dialog img").click(),
    ):
        thumb.click()
        alone = page.locator("dialog[open] img")
        alone.wait_for()
        assert alone.get_attribute("src") == thumb.locator("img").get_attribute("src")
        assert alone.bounding_box()["width"] > 2 * thumb.bounding_box()["width"]
        assert alone.bounding_box()["width"] % EDGE == 0
        close()
        page.locator("dialog[open]").wait_for(state="hidden")


def test_the_download_delivers_the_displayed_pictures_at_native_resolution(
    page: Any, tmp_path: Path
) -> None:
    before = page.locator("figure img").first.get_attribute("src")
    set_number(page, "Seed", "7")
    wait_for_new(page, before)
    with page.expect_download() as download:
        page.get_by_role("button", name="Download").click()
    assert download.value.suggested_filename == "ddm-draws-seed7-nfe4.zip"
    path = tmp_path / "pictures.zip"
    download.value.save_as(path)
    with zipfile.ZipFile(path) as archive:
        data = [archive.read(f"{name}-{i}.png") for name in ("ddm", "mean") for i in range(4)]
    shown = page.locator("figure img").evaluate_all(
        "images => Promise.all(images.map(async image => "
        "[...new Uint8Array(await (await fetch(image.src)).arrayBuffer())]))"
    )
    assert [bytes(picture) for picture in shown] == data
    assert all(Image.open(io.BytesIO(picture)).size == (EDGE, EDGE) for picture in data)


def test_settings_and_tabs_redraw_and_a_wrong_seed_is_named(page: Any) -> None:
    before = page.locator("figure img").first.get_attribute("src")
    set_number(page, "number input for Evaluations", "2")
    wait_for_new(page, before)
    page.get_by_role("tab", name="Trajectory").click()
    page.locator("[data-row=x_0]").wait_for()
    assert page.locator("figure").count() == 2 * 2
    page.get_by_role("tab", name="Posterior").click()
    page.locator("[data-row=draw]").wait_for()
    page.get_by_label("Seed", exact=True).fill("-1")
    problem = page.get_by_role("alert").filter(has_text="seed")
    problem.wait_for()
    assert page.locator("figure").count() == 0
    assert page.get_by_role("button", name="Download").is_disabled()
    page.get_by_role("button", name="Another seed").click()
    page.locator("figure img").first.wait_for()
    assert problem.count() == 0
