"""Tiled decoding equals decoding at once, in bounded memory, for every network class."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_autoencoders import random_latents, save_network

from autoencoder.decode import decode_latents
from autoencoder.models import Autoencoder, load_autoencoder
from autoencoder.tiling import fade_weights, spans
from latentddm.engine.errors import UserError

TILED = ("kl", "flux", "vq", "tiny", "dc")
ROOT = Path(__file__).parents[2]
TAEF2 = ROOT.parent / "shared" / "weights" / "taef2"


@pytest.fixture(scope="module")
def kl(tmp_path_factory: pytest.TempPathFactory) -> Autoencoder:
    return load_autoencoder(save_network("kl", tmp_path_factory.mktemp("networks") / "kl"))


@pytest.mark.parametrize("kind", TILED)
def test_tiled_decoding_equals_decoding_at_once(kind: str, tmp_path: Path) -> None:
    autoencoder = load_autoencoder(save_network(kind, tmp_path))
    latents = random_latents(2, autoencoder.latent_channels, 72)[:, :, :, :50]
    # Unequal variance within the image: group norms with statistics per tile would differ.
    latents[:, :, :30] *= 4
    whole = decode_latents(latents, autoencoder, batch_size=2)
    tiled = decode_latents(latents, autoencoder, batch_size=2, tile=32)
    assert whole.float().std() > 3
    assert (tiled.int() - whole.int()).abs().max() <= 1


@pytest.mark.parametrize("kind", TILED)
def test_the_chain_of_decoder_layers_equals_the_decoder(kind: str, tmp_path: Path) -> None:
    autoencoder = load_autoencoder(save_network(kind, tmp_path))
    latents = random_latents(2, autoencoder.latent_channels, 8)
    with torch.no_grad():
        features = latents
        for layer in autoencoder.decoder_layers():
            features = layer(features)
    expected = autoencoder.decode_unrounded(latents)
    torch.testing.assert_close(autoencoder.to_unit(features), expected, atol=1e-5, rtol=1e-4)


def test_an_adapter_without_decoder_layers_refuses_tiles(
    kl: Autoencoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(kl), "decoder_layers", Autoencoder.decoder_layers)
    with pytest.raises(UserError, match="decoder_layers"):
        decode_latents(random_latents(1, 4, 40), kl, tile=32)
    assert decode_latents(random_latents(1, 4, 40), kl).shape == (1, 80, 80, 3)


@pytest.mark.skipif(not TAEF2.exists(), reason="the weights of TAEF2 are missing")
def test_tiled_decoding_of_taef2_equals_decoding_at_once() -> None:
    taef2 = load_autoencoder(TAEF2)
    latents = random_latents(1, 32, 40)[:, :, :, :16]
    latents[:, :, :16] *= 0.2
    difference = (
        decode_latents(latents, taef2, tile=32).int() - decode_latents(latents, taef2).int()
    )
    assert difference.abs().float().mean() < 0.01
    assert difference.abs().max() <= 1


def test_group_norms_are_restored_after_tiled_decoding(kl: Autoencoder) -> None:
    latents = random_latents(1, 4, 40)
    before = kl.decode(latents)
    decode_latents(latents, kl, tile=32)
    assert torch.equal(kl.decode(latents), before)


@pytest.mark.parametrize("length", [20, 32, 33, 48, 63, 64, 100, 255])
def test_the_weights_of_tiles_sum_to_one_at_every_pixel(length: int) -> None:
    total, owners = torch.zeros(length * 3), torch.zeros(length)
    for span in spans(length, 32):
        assert 0 <= span.start < span.stop <= length
        total[span.start * 3 : span.stop * 3] += fade_weights(span, 3)
        owners[span.own_start : span.own_stop] += 1
    torch.testing.assert_close(total, torch.ones_like(total))
    assert torch.equal(owners, torch.ones_like(owners))


def test_too_small_tiles_are_refused_with_the_smallest_size(kl: Autoencoder) -> None:
    with pytest.raises(UserError, match="at least 32"):
        decode_latents(random_latents(1, 4, 40), kl, tile=16)


@pytest.mark.slow
@pytest.mark.skipif(not TAEF2.exists(), reason="the weights of TAEF2 are missing")
def test_the_memory_of_tiled_decoding_hardly_depends_on_the_image_size() -> None:
    program = (
        "import resource, torch, sys; from autoencoder.models import load_autoencoder;"
        "from autoencoder.decode import decode_latents; size = int(sys.argv[2]) // 8;"
        "decode_latents(torch.randn(1, 32, size, size), load_autoencoder(sys.argv[1]), 1, 64);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    small, large = (
        int(
            subprocess.run(
                [sys.executable, "-c", program, TAEF2, str(size)],
                cwd=ROOT, check=True, capture_output=True, text=True,
            ).stdout.split()[-1]
        )
        for size in (512, 2048)
    )  # fmt: skip
    assert large <= 1.5 * small
