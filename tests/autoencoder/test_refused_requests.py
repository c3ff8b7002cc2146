"""A refused request leaves its output as it was, for the corrected command to use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from image_files import image_file, write_folder
from messages import assert_names
from tiny_autoencoders import random_latents, save_network

from autoencoder.store import LatentStore
from latentddm.cli import main

SMALL = ("--size", "16", "--workers", "0")


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., None]:
    """(arguments, *named): the command ends with code 2 and a message that names each."""

    def check(arguments: list[str], *named: str) -> None:
        assert main(arguments) == 2
        assert_names(capsys.readouterr().err.strip().splitlines()[-1], *named)

    return check


@pytest.fixture
def images(tmp_path: Path) -> Path:
    content = {f"{number}.png": image_file(number, (20, 20)) for number in range(6)}
    return write_folder(tmp_path / "images", content)


def test_moments_of_an_autoencoder_without_a_posterior(
    images: Path, tmp_path: Path, refused: Callable[..., None]
) -> None:
    store = tmp_path / "store"
    command = ["encode", "--images", str(images), "--autoencoder", "pixels"]
    command += ["--output", str(store), *SMALL]
    refused([*command, "--moments"], "pixels", "no posterior", "without --moments")
    assert not store.exists()
    assert main(command) == 0
    assert len(LatentStore(store)) == 6


def test_bad_reconstructions(
    images: Path, tiny_autoencoder: Path, tmp_path: Path, refused: Callable[..., None]
) -> None:
    store = tmp_path / "store"
    command = ["encode", "--images", str(images), "--output", str(store), *SMALL]
    refused([*command, "--autoencoder", str(tiny_autoencoder)], "tiny", "PSNR")
    assert not store.exists()
    assert main([*command, "--autoencoder", "pixels"]) == 0


def test_a_tile_that_is_too_small(tmp_path: Path, refused: Callable[..., None]) -> None:
    kl, latents = save_network("kl", tmp_path / "kl"), tmp_path / "latents.npy"
    np.save(latents, random_latents(2, 4, 40).numpy())
    output = tmp_path / "out"
    command = ["decode", str(latents), "--output", str(output), "--autoencoder", str(kl)]
    refused([*command, "--tile", "8"], "Tiles of 8 latents", "at least 32")
    assert not output.exists()
    assert main([*command, "--tile", "32"]) == 0
    assert len(list(output.glob("*.png"))) == 2


def test_latents_of_other_channels(tmp_path: Path, refused: Callable[..., None]) -> None:
    kl, latents = save_network("kl", tmp_path / "kl"), tmp_path / "latents.npy"
    np.save(latents, random_latents(2, 4, 8).numpy())
    output = tmp_path / "out"
    command = ["decode", str(latents), "--output", str(output), "--autoencoder"]
    refused([*command, "pixels"], "pixels", "[B,3,h,w]", "autoencoder of these latents")
    assert not output.exists()
    assert main([*command, str(kl)]) == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["encode", "--images", "gone", "--autoencoder", "lost"],
        ["import-latents", "gone", "--autoencoder", "lost"],
        ["decode", "gone.npy"],
    ],
    ids=lambda value: value[0],
)
def test_a_url_is_no_output(
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    refused: Callable[..., None],
) -> None:
    monkeypatch.chdir(tmp_path)
    url = "s3://bucket/store"
    refused([*arguments, "--output", url], url, "give a folder of this machine")
    assert not list(tmp_path.iterdir())
