"""The page to play with: its pictures, and the page itself in a real browser."""

from __future__ import annotations

import shutil
import socket
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from autoencoder.decode import decode_latents
from autoencoder.image_io import image_grid
from latentddm.cli import main
from latentddm.engine.errors import UserError
from latentddm.engine.task import SinglePhaseConfig
from latentddm.inference.generator import SamplingConfig
from latentddm.play.renderer import Studio
from latentddm.training.generator import TrainConfig, train
from latentddm.training.objective import Objective

SIDE, GAP = 32, 2


@pytest.fixture(scope="module")
def run(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = TrainConfig(
        store=str(tiny_store),
        output=str(tmp_path_factory.mktemp("runs") / "run"),
        network={"channels": 16, "multipliers": [1], "blocks": 1, "attention_levels": []},
        objective=Objective(draws=2),
        loop=SinglePhaseConfig(images=64, batch_size=8),
    )
    return train(config).path


@pytest.fixture(scope="module")
def studio(run: Path) -> Studio:
    return Studio.open(run)


def tile(picture: np.ndarray, row: int, column: int) -> np.ndarray:
    top, left = row * (SIDE + GAP), column * (SIDE + GAP)
    return picture[top : top + SIDE, left : left + SIDE]


def test_samples_are_those_of_the_sample_command(studio: Studio) -> None:
    config = SamplingConfig(steps=2, seed=3)
    raw = studio.generator.draw(4, config)
    expected = image_grid(decode_latents(raw, studio.autoencoder).numpy(), 2)
    assert np.array_equal(studio.samples(config, count=4), expected)


def test_a_trajectory_ends_in_the_first_sample(studio: Studio) -> None:
    config = SamplingConfig(steps=3, churn=0.5, seed=1)
    picture = studio.trajectory(config)
    assert picture.shape == (2 * SIDE + GAP, 3 * (SIDE + GAP) - GAP, 3)
    last = tile(picture, row=1, column=2)
    alone = studio.samples(config, count=1)
    assert np.abs(last.astype(int) - alone).max() <= 1  # batches of one and of six may round apart
    assert not np.array_equal(tile(picture, 0, 0), tile(picture, 0, 2))


def test_posterior_draws_differ_and_are_the_same_for_the_same_seed(studio: Studio) -> None:
    picture = studio.posterior(0.9, draws=4, seed=2)
    draws = [tile(picture, 0, 2), *(tile(picture, 1, column) for column in range(3))]
    assert all(not np.array_equal(draws[0], other) for other in draws[1:])
    assert np.array_equal(picture, studio.posterior(0.9, draws=4, seed=2))
    # The picture before it is corrupted does not depend on t.
    assert np.array_equal(tile(picture, 0, 0), tile(studio.posterior(0.1, 4, 2), 0, 0))


def test_wrong_settings_are_sentences(studio: Studio) -> None:
    with pytest.raises(UserError, match="ddim"):
        studio.trajectory(SamplingConfig(solver="unipc"))
    with pytest.raises(UserError, match="t must lie"):
        studio.posterior(0.0)


@pytest.mark.skipif(find_spec("gradio") is None, reason="pip install 'latentddm[play]'")
def test_a_port_that_is_taken_is_said_in_one_sentence(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["play", str(run), "--port", str(port)]) == 2
    assert f"Port {port} of 127.0.0.1 is taken" in capsys.readouterr().err


def test_a_missing_gradio_names_the_command(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["play", str(run)]) == 2
    assert "pip install 'latentddm[play]'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_browser_shows_samples_that_follow_the_sliders_and_posterior_draws(run: Path) -> None:
    pytest.importorskip("gradio", reason="pip install 'latentddm[play]'")
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    browser_path = shutil.which("chromium") or shutil.which("google-chrome")
    if browser_path is None:
        pytest.skip("no Chromium is installed")
    from latentddm.play import serving

    torch.set_num_threads(1)
    with (
        serving(run, port=free_port()) as address,
        playwright.sync_playwright() as driver,
    ):
        browser = driver.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_page()
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        pictures = page.locator("img[src*='/file=']")
        pictures.nth(1).wait_for(timeout=60_000)
        before = pictures.nth(0).get_attribute("src")
        page.get_by_label("number input for Evaluations A").fill("9")
        page.keyboard.press("Enter")
        page.wait_for_function(
            "before => document.querySelector(\"img[src*='/file=']\").src != before",
            arg=before,
            timeout=60_000,
        )
        for tab in ("Trajectory", "Posterior"):
            page.get_by_role("tab", name=tab).click()
            shown = page.locator("img[src*='/file=']:visible")
            shown.first.wait_for(timeout=60_000)
            assert shown.first.evaluate("image => image.naturalWidth") > SIDE
        browser.close()
    assert not errors


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
