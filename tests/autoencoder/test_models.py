"""Loading of autoencoders: equal to their networks; wrong files are refused in one sentence."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import tarfile
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_autoencoders import CHANNELS, FACTORS, MAKERS, random_latents, random_pixels, save_network

from autoencoder.images import Preprocessing
from autoencoder.metrics import psnr
from autoencoder.models import Autoencoder, check_reconstruction, load_autoencoder
from autoencoder.models.adapters import ADAPTERS
from autoencoder.sources.arrays import ArraySource
from autoencoder.store import LatentStore, encode_store
from latentddm.engine.errors import UserError

SHARED = Path(__file__).parents[2].parent / "shared"
TAEF2 = SHARED / "weights" / "taef2"
WEIGHTS = "diffusion_pytorch_model.safetensors"
needs_taef2 = pytest.mark.skipif(not TAEF2.exists(), reason="the weights of TAEF2 are missing")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("autoencoders")
    return {kind: save_network(kind, root / kind) for kind in MAKERS}


@pytest.mark.parametrize("kind", MAKERS)
def test_every_class_equals_its_network(folders: dict[str, Path], kind: str) -> None:
    autoencoder = load_autoencoder(folders[kind])
    network = getattr(diffusers, type(autoencoder.network).__name__).from_pretrained(folders[kind])
    pixels = random_pixels(2, 32)
    images = pixels.permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        encoded = network.encode(images, return_dict=False)[0]
        expected = encoded if isinstance(encoded, torch.Tensor) else encoded.mode()
        decoded = network.decode(expected, return_dict=False)[0]
    latents = autoencoder.encode(pixels)
    assert (autoencoder.latent_channels, autoencoder.factor) == (CHANNELS[kind], FACTORS[kind])
    assert latents.shape == (2, CHANNELS[kind], 32 // FACTORS[kind], 32 // FACTORS[kind])
    assert latents.dtype == torch.float32
    torch.testing.assert_close(latents, expected, atol=1e-5, rtol=1e-4)
    unrounded = autoencoder.decode_unrounded(latents)
    torch.testing.assert_close(
        unrounded, (decoded.permute(0, 2, 3, 1) + 1) / 2, atol=1e-4, rtol=1e-4
    )
    assert torch.equal(autoencoder.decode(latents), (unrounded.clamp(0, 1) * 255).round().byte())


@pytest.mark.parametrize("kind", MAKERS)
def test_bfloat16_weights_keep_pixels_uint8_and_latents_float32(
    folders: dict[str, Path], kind: str
) -> None:
    exact, rounded = (
        load_autoencoder(folders[kind]),
        load_autoencoder(folders[kind], dtype=torch.bfloat16),
    )
    pixels = random_pixels(1, 32)
    latents = rounded.encode(pixels)
    assert rounded.dtype == torch.bfloat16
    assert latents.dtype == torch.float32
    torch.testing.assert_close(latents, exact.encode(pixels), atol=0.1, rtol=0.1)
    assert rounded.decode(latents).dtype == torch.uint8
    assert rounded.fingerprint == exact.fingerprint


def test_moments_are_those_of_the_posterior(folders: dict[str, Path]) -> None:
    autoencoder, pixels = load_autoencoder(folders["kl"]), random_pixels(1, 16)
    mean, log_variance = autoencoder.encode_moments(pixels)
    posterior = autoencoder.network.encode(pixels.permute(0, 3, 1, 2) / 127.5 - 1).latent_dist
    torch.testing.assert_close(mean, autoencoder.encode(pixels))
    torch.testing.assert_close(log_variance, posterior.logvar, atol=1e-5, rtol=1e-4)
    with pytest.raises(UserError, match="has no posterior"):
        load_autoencoder(folders["vq"]).encode_moments(pixels)


@pytest.mark.parametrize("kind", MAKERS)
def test_a_fingerprint_changes_with_one_bit_and_nothing_else(
    folders: dict[str, Path], kind: str, tmp_path: Path
) -> None:
    reference = load_autoencoder(folders[kind]).fingerprint
    assert reference.startswith("sha256:")
    assert reference not in {
        load_autoencoder(folders[other]).fingerprint for other in MAKERS if other != kind
    }
    saved_again = save_network(kind, tmp_path / "bin", safe_serialization=False)
    assert not (saved_again / WEIGHTS).exists()
    config = json.loads((saved_again / "config.json").read_text())
    config |= {"_name_or_path": "elsewhere", "_diffusers_version": "9.9.9"}
    (saved_again / "config.json").write_text(json.dumps(config))
    assert load_autoencoder(saved_again).fingerprint == reference
    shutil.copytree(folders[kind], tmp_path / "bit")
    weights = load_file(tmp_path / "bit" / WEIGHTS)
    next(iter(weights.values())).view(-1).view(torch.int32)[0] ^= 1
    save_file(weights, tmp_path / "bit" / WEIGHTS)
    assert load_autoencoder(tmp_path / "bit").fingerprint != reference


def test_a_pipeline_a_run_and_old_attention_names_are_found(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    direct = load_autoencoder(folders["kl"]).fingerprint
    for subfolder in ("vae", "vqvae", "autoencoder"):
        shutil.copytree(folders["kl"], tmp_path / subfolder / subfolder)
        assert load_autoencoder(tmp_path / subfolder).fingerprint == direct
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = load_file(folders["kl"] / WEIGHTS)
    for new_name, old_name in old.items():
        weights = {
            name.replace(f".{new_name}.", f".{old_name}."): value for name, value in weights.items()
        }
    save_file(weights, tmp_path / "vae" / "vae" / WEIGHTS)
    assert load_autoencoder(tmp_path / "vae").fingerprint == direct


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


@needs_taef2
def test_taef2_reconstructs_real_faces() -> None:
    shard = SHARED / "data" / "faces128" / "faces128-000.tar"
    if not shard.exists():
        pytest.skip("the faces are missing")
    faces: list[np.ndarray] = []
    with tarfile.open(shard) as tar:
        for member in tar:
            if member.name.endswith(".jpg") and len(faces) < 2:
                file = tar.extractfile(member)
                assert file is not None
                image = Image.open(io.BytesIO(file.read()))
                faces.append(np.asarray(image.resize((256, 256), Image.Resampling.BICUBIC)))
            elif len(faces) == 2:
                break
    pixels = torch.from_numpy(np.stack(faces))
    taef2 = load_autoencoder(TAEF2)
    assert (taef2.latent_channels, taef2.factor) == (32, 8)
    assert check_reconstruction(taef2, pixels) >= 33


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


def test_unfitting_inputs_are_refused(folders: dict[str, Path]) -> None:
    autoencoder = load_autoencoder(folders["dc"])
    with pytest.raises(UserError, match=r"30x30 .*multiples of 4"):
        autoencoder.encode(random_pixels(1, 30))
    with pytest.raises(UserError, match=r"uint8 \[B,H,W,3\], not torch.float32"):
        autoencoder.encode(torch.zeros(1, 3, 32, 32))
    with pytest.raises(UserError, match=r"\[B,8,h,w\], not .*\[1, 4, 8, 8\]"):
        autoencoder.decode(random_latents(1, 4, 8))
    with pytest.raises(UserError, match="NaN"):
        autoencoder.decode(torch.full((1, 8, 4, 4), torch.nan))


class _Amplifier(torch.nn.Module):
    """A network whose latents are the images, and whose decoder multiplies them by a gain."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor(gain))

    def encode(self, images: torch.Tensor, return_dict: bool) -> tuple[torch.Tensor]:
        return (images,)

    def decode(self, latents: torch.Tensor, return_dict: bool) -> tuple[torch.Tensor]:
        return (latents * self.gain,)


def test_a_bad_reconstruction_is_refused_with_its_likely_cause(folders: dict[str, Path]) -> None:
    def amplifier(gain: float) -> Autoencoder:
        return Autoencoder(
            _Amplifier(gain), reference="amplifier", fingerprint="", latent_channels=3, factor=1
        )

    pixels = random_pixels(2, 16)
    assert check_reconstruction(amplifier(0.98), pixels) > 30
    with pytest.raises(UserError, match=r"amplifier .*pixel range or the latent scale"):
        check_reconstruction(amplifier(0.5), pixels)
    with pytest.raises(UserError, match="weights are wrong"):
        check_reconstruction(load_autoencoder(folders["kl"]), pixels)


class AsymmetricAutoencoder(Autoencoder):
    """AsymmetricAutoencoderKL, an inpainting VAE that the library lacks."""

    @staticmethod
    def factor_of(config: Any) -> int:
        return 2 ** (len(config.down_block_out_channels) - 1)

    def _encode(self, images: torch.Tensor) -> torch.Tensor:
        return self.network.encode(images).latent_dist.mean


def test_one_more_autoencoder_is_one_class_and_one_registry_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network_class = diffusers.AsymmetricAutoencoderKL
    monkeypatch.setitem(ADAPTERS, network_class, AsymmetricAutoencoder)

    torch.manual_seed(0)
    network = network_class(
        down_block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_out_channels=(8, 16),
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
    )
    network.save_pretrained(tmp_path / "vae")
    loaded = load_autoencoder(tmp_path / "vae")
    pixels = random_pixels(3, 16)
    assert (loaded.factor, loaded.latent_channels) == (2, 4)
    assert loaded.reconstruct(pixels).shape == pixels.shape
    encode_store(
        ArraySource(pixels.numpy(), "noise"),
        loaded,
        tmp_path / "store",
        preprocessing=Preprocessing(size=16),
        workers=0,
        check=False,
    )
    store = LatentStore(tmp_path / "store")
    store.check_autoencoder(loaded)
    keys = [int(store.key(index)) for index in range(3)]
    assert torch.equal(store.raw(0, 3), loaded.encode(pixels[keys]).half().float())


def test_psnr_is_that_of_each_image() -> None:
    first = torch.full((3, 4, 4, 3), 100, dtype=torch.uint8)
    second = first.clone()
    second[1] += 5
    second[2, :2] = 90
    expected = [float("inf"), 10 * np.log10(255**2 / 25), 10 * np.log10(255**2 / 50)]
    assert psnr(first, second).tolist() == pytest.approx(expected)
