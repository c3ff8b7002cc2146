"""LPIPS: its distances, its weights files, and training with it."""

from __future__ import annotations

import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from autoencoder.perceptual import load_lpips, lpips_distances
from autoencoder.sources.arrays import ArraySource
from autoencoder.training import AutoencoderConfig, NetworkConfig, train_autoencoder
from autoencoder.training.losses import LossConfig
from latentddm.engine.errors import JobError, UserError
from latentddm.engine.run import RunFolder
from latentddm.engine.task import SinglePhaseConfig

ALEXNET = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file in the form of torchvision's AlexNet, with random weights."""
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for layer, (filters, channels, side) in ALEXNET.items():
        scale = (channels * side**2) ** -0.5
        shape = (filters, channels, side, side)
        weights[f"features.{layer}.weight"] = scale * torch.randn(shape, generator=generator)
        weights[f"features.{layer}.bias"] = torch.zeros(filters)
    weights["classifier.1.weight"] = torch.zeros(1)  # unused tensors are ignored
    path = tmp_path_factory.mktemp("backbone") / "alexnet.safetensors"
    save_file(weights, path)
    return path


def images(count: int, size: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, size, size, 3), generator=generator, dtype=torch.uint8)


def test_it_is_zero_for_equal_images_and_grows_with_noise(backbone: Path) -> None:
    network = load_lpips(weights=backbone)
    first = images(3, 64) // 4 + 96
    near, far = ((first.int() + step * (images(3, 64).int() % 5 - 2)) for step in (2, 20))
    distances = [
        lpips_distances(network, first, second.clamp(0, 255).to(torch.uint8))
        for second in (first, near, far)
    ]
    assert torch.equal(distances[0], torch.zeros(3))
    assert (distances[1] > 0).all()
    assert (distances[2] > distances[1]).all()


def test_a_missing_or_wrong_file_is_one_sentence(tmp_path: Path) -> None:
    save_file({"features.0.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "vgg.safetensors")
    for path, message in (
        (tmp_path / "absent.pth", "absent.pth does not exist"),
        (tmp_path / "vgg.safetensors", r"vgg\.safetensors .*AlexNet: features\.0\.weight"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            load_lpips(weights=path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "name"), [("alex", "alexnet-owt-7be5be79.pth"), ("vgg", "vgg16-397923af.pth")]
)
def test_without_a_network_the_message_names_the_file_its_place_and_the_alternatives(
    kind: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    place = tmp_path / "checkpoints" / name
    expected = rf"{name} .*{place} .*--lpips-weights.*perceptual_file.*perceptual=none"
    with pytest.raises(JobError, match=expected) as caught:
        load_lpips(backbone=kind)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def training(output: Path, loss: LossConfig, size: int = 32) -> AutoencoderConfig:
    return AutoencoderConfig(
        images="noise",
        size=size,
        output=str(output),
        workers=0,
        network=NetworkConfig(widths=(8, 8), blocks=1, norm_groups=4, attention=False),
        loss=loss,
        loop=SinglePhaseConfig(images=8, batch_size=4, log_every=4),
    )


def test_training_adds_its_weighted_value_to_the_loss(backbone: Path, tmp_path: Path) -> None:
    source = ArraySource(images(4).numpy(), "noise")
    loss = LossConfig(perceptual="alex", perceptual_file=str(backbone), perceptual_weight=100.0)
    for name, chosen in (("with", loss), ("without", LossConfig())):
        train_autoencoder(training(tmp_path / name, chosen), source)
    lines = RunFolder(tmp_path / "with").read_metrics()
    assert len(lines) == 2
    for line in lines:
        terms = line["reconstruction"] + 100 * line["lpips"] + loss.kl_weight * line["kl"]
        assert line["loss"] == pytest.approx(terms, rel=1e-4)
        assert line["lpips"] > 0
    assert "lpips" not in RunFolder(tmp_path / "without").read_metrics()[0]
    outputs = [
        (tmp_path / name / "autoencoder" / "diffusion_pytorch_model.safetensors").read_bytes()
        for name in ("with", "without")
    ]
    assert outputs[0] != outputs[1]


def test_too_small_images_are_refused_with_the_smallest_size(tmp_path: Path) -> None:
    source = ArraySource(np.zeros((4, 16, 16, 3), np.uint8), "black")
    with pytest.raises(UserError, match=r"size is 16.* loss\.perceptual=alex .* 32 pixels"):
        train_autoencoder(training(tmp_path / "run", LossConfig(perceptual="alex"), 16), source)
