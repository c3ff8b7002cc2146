"""Training an autoencoder: resumed equals never stopped; the result is a diffusers folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file

from autoencoder.images import Preprocessing
from autoencoder.losses import gradient_loss, kl_loss, reconstruction_loss
from autoencoder.models import load_autoencoder
from autoencoder.pixel_stream import pixel_batches
from autoencoder.sources.arrays import ArraySource
from autoencoder.training import AutoencoderConfig, NetworkConfig, train_autoencoder
from autoencoder.training.network import build_network, downsampling_factor
from latentddm.engine.checkpoint import newest_checkpoint
from latentddm.engine.config import load_config
from latentddm.engine.errors import UserError
from latentddm.engine.optimizer import OptimizerConfig
from latentddm.engine.task import SinglePhaseConfig

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
def test_a_stopped_run_ends_bit_equal_to_one_that_was_never_stopped(
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


def test_the_result_loads_with_diffusers_and_as_a_reference(tmp_path: Path) -> None:
    folder = train_autoencoder(config(tmp_path / "run"), source())
    assert AutoencoderKL.from_pretrained(folder).config.latent_channels == 3
    loaded = load_autoencoder(tmp_path / "run")
    assert (loaded.factor, loaded.latent_channels) == (4, 3)


def test_training_can_start_from_a_trained_autoencoder(tmp_path: Path) -> None:
    folder = train_autoencoder(config(tmp_path / "first"), source())
    second = replace(
        config(tmp_path / "second", images=4),
        start=str(folder),
        optimizer=OptimizerConfig(learning_rate=0.0),
    )
    name = "diffusion_pytorch_model.safetensors"
    before, after = load_file(folder / name), load_file(train_autoencoder(second, source()) / name)
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_size_that_does_not_fit_the_factor_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="multiple of 4"):
        train_autoencoder(replace(config(tmp_path / "run"), size=18), source())


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_all_ranks_together_see_each_image_once_an_epoch(ranks: int) -> None:
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


def test_seeking_gives_the_batches_of_reading() -> None:
    images, preprocessing = source(), Preprocessing(size=16)
    reading = pixel_batches(images, preprocessing, 5, seed=1, flip=True)
    batches = [next(reading) for _ in range(4)]
    seeking = pixel_batches(images, preprocessing, 5, seed=1, flip=True, start=15)
    assert torch.equal(next(seeking), batches[3])


def test_the_losses_are_what_they_say() -> None:
    generator = torch.Generator().manual_seed(0)
    images, target = torch.randn(2, 2, 3, 4, 4, generator=generator, dtype=torch.float64)
    difference = images - target
    expected = difference.abs().sum((1, 2, 3)) / 48
    torch.testing.assert_close(reconstruction_loss(images, target, "l1"), expected)
    expected = difference.square().sum((1, 2, 3)) / 48
    torch.testing.assert_close(reconstruction_loss(images, target, "l2"), expected)
    assert gradient_loss(images + 3, images).max() < 1e-12
    ramp = torch.arange(4.0).expand(1, 3, 4, 4)  # each step along a row is 1, down a column 0
    assert gradient_loss(ramp, torch.zeros(1, 3, 4, 4)).item() == 1

    mean, log_variance = torch.randn(2, 2, 3, 4, 4, generator=generator, dtype=torch.float64)
    posterior = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    standard = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
    expected = torch.distributions.kl_divergence(posterior, standard).sum((1, 2, 3))
    torch.testing.assert_close(kl_loss(mean, log_variance), expected)


@pytest.mark.parametrize(
    ("name", "factor"),
    [
        ("autoencoder_f4.yaml", 4),
        ("autoencoder_f8.yaml", 8),
        ("autoencoder_f8_small.yaml", 8),
        ("autoencoder_f16.yaml", 16),
    ],
)
def test_the_presets_are_whole_and_have_the_factor_of_their_names(name: str, factor: int) -> None:
    chosen = load_config(AutoencoderConfig, CONFIGS / name, ["images=noise", "output=run"])
    with torch.device("meta"):
        assert downsampling_factor(build_network(chosen)) == factor
    assert chosen.size % factor == 0
    assert chosen.loss.perceptual != "none"
    assert chosen.adversarial.start_images < chosen.loop.images


def test_micro_batches_train_as_one_batch_does(tmp_path: Path) -> None:
    folders = []
    for parts in (1, 2):
        chosen = config(tmp_path / str(parts))
        loop = replace(chosen.loop, images=4, micro_batches=parts)
        folders.append(train_autoencoder(replace(chosen, loop=loop), source()))
    name = "diffusion_pytorch_model.safetensors"
    whole, split = (load_file(folder / name) for folder in folders)
    # Of Adam's first step only the signs of gradients matter: those that round to another one
    # differ by twice the learning rate.
    different = [float(((whole[key] - split[key]).abs() > 1e-4).float().mean()) for key in whole]
    assert sum(different) / len(different) < 0.01


@pytest.mark.parametrize(
    ("override", "message"),
    [("loop.sharded=true", "is for generators"), ("ema.widths=[]", "give one width")],
)
def test_what_an_autoencoder_cannot_do_is_refused_before_anything_is_written(
    override: str, message: str, tmp_path: Path
) -> None:
    overrides = ["images=noise", f"output={tmp_path / 'run'}", override]
    chosen = load_config(AutoencoderConfig, CONFIGS / "autoencoder_f8_small.yaml", overrides)
    with pytest.raises(UserError, match=message):
        train_autoencoder(chosen, source())
    assert not (tmp_path / "run").exists()
