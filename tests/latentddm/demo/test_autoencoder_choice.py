"""The autoencoder of the demo: never a wait for an unreachable hub, never a silent loss."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from messages import assert_names, raises_naming
from tiny_autoencoders import grey_pixels, random_pixels, save_grey, save_network

from autoencoder.models import hub, load_autoencoder
from autoencoder.portraits import draw_portrait
from autoencoder.training.network import start_reference
from latentddm.cli.arguments import find_config
from latentddm.demo import DemoConfig, autoencoder_choice
from latentddm.demo.autoencoder_choice import (
    HUB_TINY,
    announce,
    choose_autoencoder,
    embedded_sentence,
    load_chosen,
    warning_of,
)
from latentddm.demo.config import AUTO
from latentddm.engine.config import load_config
from latentddm.engine.errors import UserError


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache, empty; the hub is on."""
    cache = tmp_path / "cache"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    return cache


def forbid(*arguments: object, **options: object) -> bool:
    raise AssertionError("the network was tried")


def fill(cache: Path) -> Path:
    """What a download leaves in the cache: the tiny autoencoder of a tiny hub."""
    folder = cache / f"models--{HUB_TINY.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    return save_network("tiny", folder / "snapshots" / ("0" * 40))


def test_a_reference_is_taken_and_no_hub_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autoencoder_choice, "available_at_once", forbid)
    assert choose_autoencoder("some/where", embedded_fits=False) == "some/where"
    assert choose_autoencoder(None, embedded_fits=False) is None
    assert choose_autoencoder(AUTO, embedded_fits=True) is None  # portraits: it is made for them


def test_offline_there_is_no_attempt(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "_answers", forbid)
    monkeypatch.setattr(hub.subprocess, "run", forbid)
    assert choose_autoencoder(AUTO, embedded_fits=False) is None


def test_a_silent_hub_is_given_up_soon(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that takes the connection and never says a word."""
    monkeypatch.setattr(hub.subprocess, "run", forbid)
    monkeypatch.setattr(hub, "PROBE_SECONDS", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        started = time.monotonic()
        assert choose_autoencoder(AUTO, embedded_fits=False) is None
        assert time.monotonic() - started < 10  # the default of clients is minutes


def test_a_download_that_hangs_is_ended(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_answers", lambda *_: True)
    monkeypatch.setattr(hub, "DOWNLOAD_SECONDS", 0.2)
    monkeypatch.setattr(hub.sys, "executable", "/bin/sleep")

    def hang(command: list[str], **options: float) -> None:
        real(["sleep", "60"], **options)

    real = hub.subprocess.run
    monkeypatch.setattr(hub.subprocess, "run", hang)
    started = time.monotonic()
    assert choose_autoencoder(AUTO, embedded_fits=False) is None
    assert time.monotonic() - started < 10


def test_a_downloaded_autoencoder_is_taken_from_the_cache_ever_after(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "_answers", lambda *_: True)
    monkeypatch.setattr(hub.subprocess, "run", lambda *_, **__: fill(empty_cache))
    assert choose_autoencoder(AUTO, embedded_fits=False) == HUB_TINY
    monkeypatch.setattr(hub, "_answers", forbid)
    monkeypatch.setattr(hub, "_snapshot", forbid)
    assert choose_autoencoder(AUTO, embedded_fits=False) == HUB_TINY
    assert load_autoencoder(HUB_TINY).reference == HUB_TINY


def test_name_licence_and_psnr_are_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="latentddm")
    autoencoder = load_autoencoder(save_grey(tmp_path / "ae"))
    autoencoder.reference = HUB_TINY
    announce(HUB_TINY, autoencoder, grey_pixels(4, 32))
    (record,) = caplog.records
    assert_names(record.getMessage(), HUB_TINY, "MIT licence", "PSNR", "dB")


def test_a_reference_whose_reconstructions_resemble_nothing_is_refused(tmp_path: Path) -> None:
    folder = save_network("kl", tmp_path / "ae")
    with raises_naming(UserError, str(folder), "dB", "weights"):
        announce(str(folder), load_autoencoder(folder), random_pixels(4, 32))


def test_the_embedded_one_says_what_it_keeps_and_what_to_do() -> None:
    autoencoder = load_autoencoder(start_reference("portraits"))
    portraits = np.stack([draw_portrait(index, 64)[0] for index in range(4)])
    on_portraits = embedded_sentence(autoencoder, torch.from_numpy(portraits))
    on_noise = embedded_sentence(autoencoder, random_pixels(4, 64))
    for sentence in (on_portraits, on_noise):
        assert_names(sentence, "embedded", "dB", "--autoencoder REF")
    kept = [float(s.partition("PSNR of ")[2].split()[0]) for s in (on_portraits, on_noise)]
    assert kept[0] > 20 > kept[1]


@pytest.mark.parametrize(("kept", "warned"), [(19.2, True), (26.0, False)])
def test_the_report_warns_of_blurred_pictures(kept: float, warned: bool) -> None:
    assert bool(warning_of(kept, trained_here=True)) == warned
    if warned:
        assert_names(warning_of(kept, trained_here=True), "19.2 dB", "--autoencoder REF")
        assert "--autoencoder" not in warning_of(kept, trained_here=False)


@pytest.mark.parametrize(("size", "remedy"), [(50, "choose 48"), (3, "choose 4")])
def test_a_factor_that_does_not_divide_the_size_is_named(
    size: int, remedy: str, tmp_path: Path
) -> None:
    folder = save_network("dc", tmp_path / "ae")
    config = load_config(DemoConfig, find_config("demo_own.yaml"), [f"size={size}"])
    with raises_naming(UserError, f"size is {size}", "multiple of 4", str(folder), remedy):
        load_chosen(str(folder), config)
