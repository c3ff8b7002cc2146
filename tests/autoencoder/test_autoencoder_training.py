"""Training of an autoencoder: bit-equal resume, learning rates, configs, a diffusers folder."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file

from autoencoder.images import Preprocessing
from autoencoder.models import load_autoencoder
from autoencoder.pixel_stream import pixel_batches
from autoencoder.sources.arrays import ArraySource
from autoencoder.training import (
    AdversarialConfig,
    AutoencoderConfig,
    NetworkConfig,
    train_autoencoder,
)
from autoencoder.training.discriminator import build_discriminator
from autoencoder.training.losses import gradient_loss, kl_loss, pixel_loss
from autoencoder.training.network import build_network, downsampling_factor
from latentddm.engine.checkpoint import newest_checkpoint
from latentddm.engine.config import load_config
from latentddm.engine.errors import UserError
from latentddm.engine.optimizer import OptimizerConfig
from latentddm.engine.task import SinglePhaseConfig
from latentddm.engine.trainable_module import TrainableModule

CONFIGS = Path(__file__).parents[2] / "configs"
SHAPE = NetworkConfig(widths=(8, 8, 8), blocks=1, latent_channels=3, norm_groups=4, attention=False)


def source(images: int = 12) -> ArraySource:
    pixels = np.random.default_rng(0).integers(0, 256, (images, 16, 16, 3), dtype=np.uint8)
    return ArraySource(pixels, "noise")


def config(output: Path, images: int = 24) -> AutoencoderConfig:
    return AutoencoderConfig(
        images="noise",
        size=16,
        output=str(output),
        workers=0,
        network=SHAPE,
        optimizer=OptimizerConfig(learning_rate=1e-3),
        loop=SinglePhaseConfig(images=images, batch_size=4, log_every=4, checkpoint_every=8),
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stopped_and_resumed_run_is_bit_equal_to_an_uninterrupted_one(
    tmp_path: Path, workers: int
) -> None:
    straight = train_autoencoder(config(tmp_path / "straight"), source())
    whole = replace(config(tmp_path / "stopped"), workers=workers)
    train_autoencoder(replace(whole, loop=replace(whole.loop, images=12)), source())
    stopped = train_autoencoder(whole, source())
    for run in (straight, stopped):
        assert newest_checkpoint(run.parent / "checkpoints").images == 24
    name = "diffusion_pytorch_model.safetensors"
    first, second = load_file(straight / name), load_file(stopped / name)
    assert set(first) == set(second)
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_credentials_of_the_images_are_kept_nowhere(tmp_path: Path) -> None:
    secret = "https://someone:SECRET@host/faces.tar?token=SECRET"
    wanted = replace(config(tmp_path / "run", images=8), images=secret)
    train_autoencoder(wanted, source())
    for path in (tmp_path / "run").rglob("*"):
        assert path.is_dir() or b"SECRET" not in path.read_bytes(), path


def test_the_result_loads_with_diffusers_and_as_a_reference(tmp_path: Path) -> None:
    folder = train_autoencoder(config(tmp_path / "run"), source())
    assert AutoencoderKL.from_pretrained(folder).config.latent_channels == 3
    loaded = load_autoencoder(tmp_path / "run")
    assert (loaded.factor, loaded.latent_channels) == (4, 3)


def test_training_starts_from_a_trained_autoencoder(tmp_path: Path) -> None:
    folder = train_autoencoder(config(tmp_path / "first"), source())
    second = replace(
        config(tmp_path / "second", images=4),
        start=str(folder),
        optimizer=OptimizerConfig(learning_rate=0.0),
    )
    name = "diffusion_pytorch_model.safetensors"
    before, after = load_file(folder / name), load_file(train_autoencoder(second, source()) / name)
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_size_that_is_no_multiple_of_the_factor_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"size is 18.* multiple of 4"):
        train_autoencoder(replace(config(tmp_path / "run"), size=18), source())


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_an_epoch_over_all_ranks_holds_every_image_once(ranks: int) -> None:
    pixels = np.arange(12, dtype=np.uint8).repeat(8 * 8 * 3).reshape(12, 8, 8, 3)
    images, preprocessing = ArraySource(pixels, "numbers"), Preprocessing(size=8)
    streams = [
        pixel_batches(images, preprocessing, 12 // ranks, seed=3, rank=rank, world_size=ranks)
        for rank in range(ranks)
    ]
    epochs = [
        torch.cat([next(stream)[:, 0, 0, 0] for stream in streams]).tolist() for _ in range(2)
    ]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(12))
    assert epochs[0] != epochs[1]
    one = pixel_batches(images, preprocessing, 12, seed=3)
    assert next(one)[:, 0, 0, 0].tolist() == epochs[0]


def test_seeking_equals_reading() -> None:
    images, preprocessing = source(), Preprocessing(size=16)
    reading = pixel_batches(images, preprocessing, 5, seed=1, flip=True)
    batches = [next(reading) for _ in range(4)]
    seeking = pixel_batches(images, preprocessing, 5, seed=1, flip=True, start=15)
    assert torch.equal(next(seeking), batches[3])


def test_the_losses_equal_their_formulas() -> None:
    generator = torch.Generator().manual_seed(0)
    images, target = torch.randn(2, 2, 3, 4, 4, generator=generator, dtype=torch.float64)
    difference = images - target
    expected = difference.abs().sum((1, 2, 3)) / 48
    torch.testing.assert_close(pixel_loss(images, target, "l1"), expected)
    expected = difference.square().sum((1, 2, 3)) / 48
    torch.testing.assert_close(pixel_loss(images, target, "l2"), expected)
    assert gradient_loss(images + 3, images).max() < 1e-12
    ramp = torch.arange(4.0).expand(1, 3, 4, 4)  # each step along a row is 1, down a column 0
    assert gradient_loss(ramp, torch.zeros(1, 3, 4, 4)).item() == 1

    mean, log_variance = torch.randn(2, 2, 3, 4, 4, generator=generator, dtype=torch.float64)
    posterior = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    standard = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
    expected = torch.distributions.kl_divergence(posterior, standard).sum((1, 2, 3))
    torch.testing.assert_close(kl_loss(mean, log_variance), expected)


PRESETS = {  # shape of the latents of each config: (channels, height, width)
    "autoencoder_f4.yaml": (3, 64, 64),
    "autoencoder_f8.yaml": (4, 32, 32),
    "autoencoder_f8_small.yaml": (4, 16, 16),
    "autoencoder_f16.yaml": (16, 16, 16),
    "faces128_autoencoder.yaml": (4, 16, 16),
    "portraits_autoencoder.yaml": (6, 4, 4),
}


def test_every_autoencoder_config_has_a_preset_test() -> None:
    assert {path.name for path in CONFIGS.glob("*autoencoder*.yaml")} == set(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_every_config_is_valid_and_its_network_has_the_shape_of_its_comment(name: str) -> None:
    shape = PRESETS[name]
    chosen = load_config(AutoencoderConfig, CONFIGS / name, ["images=noise", "output=run"])
    with torch.device("meta"):
        network = build_network(chosen)
        images = torch.empty(1, 3, chosen.size, chosen.size)
        latents = network.encode(images).latent_dist.mean
        assert latents.shape[1:] == shape
        assert network.decode(latents).sample.shape == images.shape
        if chosen.adversarial.weight > 0:
            logits = build_discriminator(chosen.adversarial, seed=0)(images)
            assert logits.shape[:2] == (1, 1)
            assert logits[0, 0].numel() > 1
    assert chosen.size == shape[1] * downsampling_factor(network)
    assert chosen.adversarial.start_images < chosen.loop.images
    assert "x".join(map(str, shape)) in (CONFIGS / name).read_text().replace(" ", "")


def test_learning_rates_warm_up_and_fall_by_a_cosine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rate of both optimizers at every step of 4 images, against the formulas."""
    rates: dict[str, list[float]] = {"network": [], "discriminator": []}
    step = TrainableModule.step

    def recorded(self: TrainableModule, images: int) -> torch.Tensor:
        norm = step(self, images)
        name = "network" if self.averages.tracked else "discriminator"
        rates[name].append(self.optimizer.param_groups[0]["lr"])
        return norm

    monkeypatch.setattr(TrainableModule, "step", recorded)
    chosen = replace(
        config(tmp_path / "run", images=40),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_images=16, decay="cosine"),
        adversarial=AdversarialConfig(
            weight=0.5,
            start_images=20,
            layers=1,
            width=4,
            optimizer=OptimizerConfig(learning_rate=2e-4),
        ),
    )
    train_autoencoder(chosen, source())
    warm_up = [1e-3 * (images + 1) / 16 for images in (0, 4, 8, 12)]
    cosine = [5e-4 * (1 + math.cos(math.pi * images / 40)) for images in range(16, 40, 4)]
    assert rates["network"] == pytest.approx([*warm_up, *cosine])
    assert rates["discriminator"] == pytest.approx([2e-4] * 5)


def test_micro_batches_are_equivalent_to_one_batch(tmp_path: Path) -> None:
    folders = []
    for parts in (1, 2):
        chosen = config(tmp_path / str(parts))
        loop = replace(chosen.loop, images=4, micro_batches=parts)
        folders.append(train_autoencoder(replace(chosen, loop=loop), source()))
    name = "diffusion_pytorch_model.safetensors"
    whole, split = (load_file(folder / name) for folder in folders)
    # Adam's first step depends on the signs of the gradients alone; values whose sign is rounded
    # otherwise differ by twice the learning rate.
    different = [float(((whole[key] - split[key]).abs() > 1e-4).float().mean()) for key in whole]
    assert sum(different) / len(different) < 0.01


@pytest.mark.parametrize(
    ("override", "key"),
    [("loop.sharded=true", r"loop\.sharded"), ("ema.widths=[]", r"ema\.widths")],
)
def test_unsupported_settings_are_refused_by_key_before_anything_is_written(
    override: str, key: str, tmp_path: Path
) -> None:
    overrides = ["images=noise", f"output={tmp_path / 'run'}", override]
    chosen = load_config(AutoencoderConfig, CONFIGS / "autoencoder_f8_small.yaml", overrides)
    with pytest.raises(UserError, match=key):
        train_autoencoder(chosen, source())
    assert not (tmp_path / "run").exists()
