"""Weights files, the TAESD family, the hub: wrong files are refused by name, code never runs."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_autoencoders import random_latents, save_network

from autoencoder.models import load_autoencoder
from latentddm.engine.errors import UserError

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("autoencoders")
    return {kind: save_network(kind, root / kind) for kind in ("kl", "vq")}


def _save_halves(folder: Path, prefix: str, channels: int, suffix: str) -> None:
    """Weights in TAESD's published form: one file per half, a decoder's layers from 1."""
    torch.manual_seed(3)
    network = diffusers.AutoencoderTiny(latent_channels=channels)
    for half, offset in (("encoder", 0), ("decoder", 1)):
        weights = {}
        for name, value in getattr(network, half).layers.state_dict().items():
            layer, rest = name.split(".", 1)
            weights[f"{int(layer) + offset}.{rest}"] = value
        path = folder / f"{prefix}_{half}{suffix}"
        save_file(weights, path) if suffix == ".safetensors" else torch.save(weights, path)
    network.save_pretrained(folder / f"{prefix} of diffusers")


def test_the_architecture_of_the_taesd_family_follows_from_its_tensors(tmp_path: Path) -> None:
    _save_halves(tmp_path, "taesd", 4, ".pth")
    _save_halves(tmp_path, "taesd3", 16, ".safetensors")
    with pytest.raises(UserError, match="several encoders"):
        load_autoencoder(tmp_path)
    latents = random_latents(1, 16, 4)
    loaded = load_autoencoder(tmp_path / "taesd3")
    by_prefix = [
        load_autoencoder(tmp_path / name)
        for name in ("taesd3_encoder.safetensors", "taesd3_decoder.safetensors")
    ]
    assert {one.fingerprint for one in by_prefix} == {loaded.fingerprint}
    assert all(torch.equal(one.decode(latents), loaded.decode(latents)) for one in by_prefix)
    assert (loaded.latent_channels, loaded.factor) == (16, 8)
    assert load_autoencoder(tmp_path / "taesd_decoder.pth").latent_channels == 4
    folder = tmp_path / "taesd of diffusers"
    forms = [folder, folder / WEIGHTS, tmp_path / "taesd", tmp_path / "taesd_encoder.pth"]
    assert len({load_autoencoder(form).fingerprint for form in forms}) == 1


def test_pth_and_safetensors_have_one_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    _save_halves(tmp_path / "a", "tae", 4, ".pth")
    _save_halves(tmp_path / "b", "tae", 4, ".safetensors")
    first, second = (load_autoencoder(tmp_path / name / "tae_encoder.pth") for name in "aa")
    other = load_autoencoder(tmp_path / "b" / "tae_decoder.safetensors")
    assert first.fingerprint == second.fingerprint == other.fingerprint


class _Intruder:
    """An object that creates a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("kind", ["torch", "pickle"])
def test_code_in_a_weights_file_is_never_run(tmp_path: Path, kind: str) -> None:
    trace = tmp_path / "trace"
    for half in ("encoder", "decoder"):
        content = {"0.weight": _Intruder(trace)}
        with open(tmp_path / f"tae_{half}.pth", "wb") as file:
            torch.save(content, file) if kind == "torch" else pickle.dump(content, file)
    with pytest.raises(UserError, match=r"tae_encoder\.pth is a pickle .*\.safetensors"):
        load_autoencoder(tmp_path)
    assert not trace.exists()


def _changed(folder: Path, copy: Path, name: str, value: torch.Tensor | None) -> Path:
    """A copy of an autoencoder's folder with one tensor replaced, or removed (None)."""
    shutil.copytree(folder, copy)
    weights = load_file(copy / WEIGHTS)
    weights.pop(name)
    save_file(weights | ({} if value is None else {name: value}), copy / WEIGHTS)
    return copy


def test_wrong_weights_are_refused_in_one_sentence(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    name = "decoder.conv_out.bias"
    cases: list[tuple[Path, str]] = [
        (_changed(folders["kl"], tmp_path / "nan", name, torch.tensor([0, torch.nan, 0])), "NaN"),
        (_changed(folders["kl"], tmp_path / "lost", name, None), f"lack tensor {name}"),
        (_changed(folders["kl"], tmp_path / "shape", name, torch.zeros(4)), r"is \[4\], not \[3\]"),
        (tmp_path / "torn", "damaged"),
        (tmp_path / "class", "UNet2DModel.*AutoencoderKL, VQModel"),
        (tmp_path / "value", "NoSuchBlock"),
        (tmp_path / "other", "AutoencoderKL"),
        (tmp_path / "bare", f"no weights .*{WEIGHTS}"),
        (tmp_path / "rgba", "4 channels"),
        (tmp_path, r"no autoencoder: neither config\.json"),
        (tmp_path / "nothing" / "here" / "at all", "does not exist"),
        (Path(__file__), r"not a weights file; give one of \.safetensors"),
    ]
    for case in ("torn", "class", "value", "other", "bare"):
        shutil.copytree(folders["kl"], tmp_path / case)
    (tmp_path / "torn" / WEIGHTS).write_bytes((folders["kl"] / WEIGHTS).read_bytes()[:-100])
    shutil.copy(folders["vq"] / WEIGHTS, tmp_path / "other" / WEIGHTS)
    (tmp_path / "bare" / WEIGHTS).unlink()
    config = json.loads((folders["kl"] / "config.json").read_text())
    for case, change in (
        ("class", {"_class_name": "UNet2DModel"}),
        ("value", {"down_block_types": ["NoSuchBlock"] * 2}),
    ):
        (tmp_path / case / "config.json").write_text(json.dumps(config | change))
    diffusers.AutoencoderKL(in_channels=4, out_channels=4).save_pretrained(tmp_path / "rgba")
    for path, message in cases:
        with pytest.raises(UserError, match=message) as caught:
            load_autoencoder(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_halves_of_two_autoencoders_are_refused(tmp_path: Path) -> None:
    _save_halves(tmp_path, "four", 4, ".safetensors")
    _save_halves(tmp_path, "sixteen", 16, ".safetensors")
    shutil.copy(tmp_path / "sixteen_decoder.safetensors", tmp_path / "four_decoder.safetensors")
    with pytest.raises(UserError, match=r"encoder.layers.14"):
        load_autoencoder(tmp_path / "four")
    (tmp_path / "four_decoder.safetensors").unlink()
    with pytest.raises(UserError, match="no four_decoder "):
        load_autoencoder(tmp_path / "four")
    for half in ("encoder", "decoder"):
        torch.save({"state_dict": {}}, tmp_path / f"nested_{half}.pth")
        (tmp_path / f"torn_{half}.pth").write_bytes(b"these are no weights")
    for prefix, message in (("nested", "a dict with other objects"), ("torn", "is damaged")):
        with pytest.raises(UserError, match=rf"{prefix}_encoder\.pth .*{message}"):
            load_autoencoder(tmp_path / prefix)


def test_the_hub_is_read_from_its_cache_and_an_absent_id_is_one_sentence(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    constants = pytest.importorskip("huggingface_hub").constants
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    snapshots = tmp_path / "models--someone--pipeline"
    shutil.copytree(folders["kl"], snapshots / "snapshots" / "abc" / "vae")
    shutil.copytree(folders["vq"], snapshots / "snapshots" / "abc" / "other")
    (snapshots / "refs").mkdir()
    (snapshots / "refs" / "main").write_text("abc")
    monkeypatch.chdir(tmp_path)
    assert load_autoencoder("someone/pipeline").latent_channels == 4
    assert load_autoencoder("someone/pipeline:other").latent_channels == 3
    with pytest.raises(UserError, match=r"someone/absent .*the id.*network") as caught:
        load_autoencoder("someone/absent")
    assert "\n" not in str(caught.value)
