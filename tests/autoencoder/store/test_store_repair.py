"""`latentddm verify --repair` on stores as they come: any damage, precision and selection."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import image_file, write_folder, write_tar
from messages import assert_names

from autoencoder import models
from autoencoder.images import Preprocessing, open_source
from autoencoder.models import load_autoencoder
from autoencoder.store import encode_store
from latentddm.cli import main

SHARD, MANIFEST = "latents-000000.tar", "manifest.json"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    content = {f"{number}.png": image_file(number, (20, 20)) for number in range(12)}
    return write_folder(tmp_path / "images", content)


def encode(images: Path, autoencoder: Path, store: Path, *options: str) -> None:
    command = ["encode", "--images", str(images), "--autoencoder", str(autoencoder)]
    command += ["--output", str(store), "--size", "16", "--workers", "0", *options]
    assert main(command) == 0


@pytest.fixture(autouse=True)
def any_reconstruction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "check_reconstruction", lambda *arguments: None)


def repair(store: Path, images: Path) -> int:
    return main(["verify", str(store), "--repair", "--images", str(images)])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)


def contents(store: Path) -> dict[str, bytes]:
    return {name: (store / name).read_bytes() for name in (SHARD, MANIFEST)}


def test_a_damaged_manifest_and_a_damaged_shard(
    images: Path, tiny_autoencoder: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    encode(images, tiny_autoencoder, store)
    before = contents(store)
    (store / MANIFEST).write_bytes(before[MANIFEST][:100])
    flip(store / SHARD)
    assert repair(store, images) == 0
    assert contents(store) == before


def test_a_store_in_bfloat16(images: Path, tiny_autoencoder: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    autoencoder = load_autoencoder(tiny_autoencoder, dtype=torch.bfloat16)
    encode_store(
        open_source(images), autoencoder, store, preprocessing=Preprocessing(size=16), workers=0
    )
    before = contents(store)
    flip(store / SHARD)
    assert repair(store, images) == 0
    assert contents(store) == before


def test_a_store_of_some_images(images: Path, tiny_autoencoder: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    encode(images, tiny_autoencoder, store, "--num", "6")
    before = contents(store)
    flip(store / SHARD)
    assert repair(store, images) == 0
    assert contents(store) == before


def test_an_imported_store_is_imported_again(
    images: Path, tiny_autoencoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store"
    array = io.BytesIO()
    np.save(array, np.random.default_rng(0).normal(size=(3, 4, 4)))
    write_tar(tmp_path / "0.tar", {f"{number}.npy": array.getvalue() for number in range(3)})
    command = ["import-latents", str(tmp_path / "0.tar"), "--autoencoder", str(tiny_autoencoder)]
    command += ["--output", str(store), "--no-check"]
    assert main(command) == 0
    before = contents(store)
    flip(store / SHARD)
    capsys.readouterr()
    assert repair(store, images) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert_names(message, str(store), "imported", "the same import-latents again")
    (store / SHARD).unlink()
    assert main(command) == 0
    assert contents(store) == before


def test_a_store_that_cannot_be_repaired_is_refused_first(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "begun" / "encoding").mkdir(parents=True)
    for store, named in (
        (str(tmp_path / "none"), "holds no latent store"),
        (str(tmp_path / "begun"), "not finished"),
        ("https://host/store", "local copy"),
    ):
        assert main(["verify", store, "--repair", "--images", str(images)]) == 2
        assert_names(capsys.readouterr().err.strip().splitlines()[-1], store, named)
