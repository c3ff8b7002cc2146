"""Autoencoders equal their networks; fingerprints, moments, reconstruction, one more class."""

from __future__ import annotations

import io
import json
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
    assert store.fingerprint == loaded.fingerprint
    keys = [int(store.key(index)) for index in range(3)]
    assert torch.equal(store.raw(0, 3), loaded.encode(pixels[keys]).half().float())


def test_psnr_is_that_of_each_image() -> None:
    first = torch.full((3, 4, 4, 3), 100, dtype=torch.uint8)
    second = first.clone()
    second[1] += 5
    second[2, :2] = 90
    expected = [float("inf"), 10 * np.log10(255**2 / 25), 10 * np.log10(255**2 / 50)]
    assert psnr(first, second).tolist() == pytest.approx(expected)
