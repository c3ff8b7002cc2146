"""The discriminator: its delayed start, its two losses, and bit-equal resume after kill -9."""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from autoencoder.images import ImageSource
from autoencoder.sources.arrays import ArraySource
from autoencoder.training import (
    AdversarialConfig,
    AutoencoderConfig,
    NetworkConfig,
    train_autoencoder,
)
from autoencoder.training.discriminator import (
    Discriminator,
    adaptive_weight,
    build_discriminator,
    smallest_size,
)
from latentddm.engine.checkpoint import newest_checkpoint
from latentddm.engine.errors import UserError
from latentddm.engine.metric_accumulator import MetricAccumulator
from latentddm.engine.optimizer import OptimizerConfig
from latentddm.engine.run import RunFolder
from latentddm.engine.task import SinglePhaseConfig

SHAPE = NetworkConfig(widths=(8, 8), blocks=1, latent_channels=3, norm_groups=4, attention=False)
OPTIMIZER = OptimizerConfig(learning_rate=1e-3)
STARTS_AT, KILLED_AT, ENDS_AT = 8, 20, 32
KILLED_IN_THE_MIDDLE = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_discriminator import KILLED_AT, config, source
from autoencoder.training import train_autoencoder
from autoencoder.training.discriminator import Discriminator

step = Discriminator.step

def step_or_die(self, target, reconstruction, images, accumulator):
    if images == KILLED_AT:
        os.kill(os.getpid(), signal.SIGKILL)
    step(self, target, reconstruction, images, accumulator)

Discriminator.step = step_or_die
train_autoencoder(config(Path(sys.argv[2])), source())
"""


def source() -> ImageSource:
    pixels = np.random.default_rng(0).integers(0, 256, (10, 24, 24, 3), dtype=np.uint8)
    return ArraySource(pixels, "noise")


def config(output: Path, weight: float = 0.5) -> AutoencoderConfig:
    return AutoencoderConfig(
        images="noise",
        size=24,
        output=str(output),
        workers=0,
        network=SHAPE,
        optimizer=OPTIMIZER,
        adversarial=AdversarialConfig(
            weight=weight, start_images=STARTS_AT, width=8, optimizer=OPTIMIZER
        ),
        loop=SinglePhaseConfig(images=ENDS_AT, batch_size=4, log_every=4, checkpoint_every=8),
    )


def states(run: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Every tensor of the newest checkpoint, by file."""
    checkpoint = newest_checkpoint(run / "checkpoints")
    assert checkpoint is not None
    return {path.name: load_file(path) for path in checkpoint.path.glob("*.safetensors")}


def test_a_killed_and_resumed_run_is_bit_equal_discriminator_and_optimizers_included(
    tmp_path: Path,
) -> None:
    train_autoencoder(config(tmp_path / "straight"), source())
    program = [sys.executable, "-c", KILLED_IN_THE_MIDDLE, Path(__file__).parent]
    killed = subprocess.run([*program, tmp_path / "killed"], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    left = newest_checkpoint(tmp_path / "killed" / "checkpoints")
    assert left is not None
    assert STARTS_AT < left.images < KILLED_AT
    train_autoencoder(config(tmp_path / "killed"), source())

    straight, resumed = states(tmp_path / "straight"), states(tmp_path / "killed")
    assert {"discriminator.safetensors", "discriminator_optimizer.safetensors"} <= set(straight)
    assert set(straight) == set(resumed)
    for file, tensors in straight.items():
        assert set(tensors) == set(resumed[file])
        assert all(torch.equal(tensors[name], resumed[file][name]) for name in tensors), file


def test_the_discriminator_has_no_effect_before_it_starts(tmp_path: Path) -> None:
    for name, weight in (("with", 0.5), ("without", 0.0)):
        early = replace(config(tmp_path / name, weight), loop=replace(LOOP, images=STARTS_AT))
        train_autoencoder(early, source())
    without = states(tmp_path / "without")["network.safetensors"]
    early_state = states(tmp_path / "with")["network.safetensors"]
    assert set(without) == set(early_state)
    assert all(torch.equal(without[name], early_state[name]) for name in without)

    for name, weight in (("with", 0.5), ("without", 0.0)):
        train_autoencoder(config(tmp_path / name, weight), source())
    metrics = RunFolder(tmp_path / "with").read_metrics()
    expected = list(range(STARTS_AT + 4, ENDS_AT + 1, 4))
    for metric in ("discriminator_loss", "generator_loss"):
        assert [line["images"] for line in metrics if metric in line] == expected
    without = states(tmp_path / "without")["network.safetensors"]
    late = states(tmp_path / "with")["network.safetensors"]
    assert any(not torch.equal(without[name], late[name]) for name in without)


LOOP = config(Path()).loop


@pytest.fixture
def discriminator() -> Discriminator:
    return Discriminator(config(Path()).adversarial, replace(LOOP, batch_size=8), 0, Accelerator())


def test_its_loss_falls_on_images_and_blurred_images(discriminator: Discriminator) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(8, 3, 24, 24, generator=generator)
    blurred = torch.nn.functional.avg_pool2d(images, 3, stride=1, padding=1)
    losses = []
    for step in range(30):
        accumulator = MetricAccumulator()
        discriminator.step(images, blurred, 8 * step, accumulator)
        losses.append(accumulator.collect(Accelerator())["discriminator_loss"])
    assert losses[-1] < 0.3 < losses[0]


def test_the_generator_loss_raises_the_logits_and_has_no_gradient_for_the_discriminator(
    discriminator: Discriminator,
) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(3, 3, 1)
    images = torch.randn(4, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    made = layer(images)
    reconstruction_loss = (made - images).abs().mean()
    discriminator.generator_loss(reconstruction_loss, made, layer.weight).backward()
    assert all(parameter.grad is None for parameter in discriminator.network.parameters())
    # The adaptive weight makes the norm of the gradient `weight` times that of the other loss.
    expected = torch.autograd.grad((layer(images) - images).abs().mean(), layer.weight)[0].norm()
    assert layer.weight.grad is not None
    assert float(layer.weight.grad.norm() / expected) == pytest.approx(0.5, rel=0.05)

    with torch.no_grad():
        before = discriminator.network(layer(images)).mean()
        layer.weight -= 0.01 * layer.weight.grad / layer.weight.grad.norm()
        assert discriminator.network(layer(images)).mean() > before


def test_the_adaptive_weight_is_a_ratio_of_gradients() -> None:
    layer = torch.tensor([3.0, 4.0], dtype=torch.float64, requires_grad=True)
    weight = adaptive_weight(2 * layer.sum(), layer.square().sum(), layer)
    assert float(weight) == pytest.approx(2 * 2**0.5 / (10 + 1e-4))
    assert not weight.requires_grad
    assert float(adaptive_weight(1e9 * layer.sum(), layer.sum(), layer)) == 1e4


def test_the_smallest_image_has_one_logit_and_smaller_ones_are_refused(tmp_path: Path) -> None:
    for layers in (1, 2, 3, 4):
        adversarial = AdversarialConfig(weight=1, layers=layers, width=2)
        size = smallest_size(adversarial)
        with torch.no_grad():
            network = build_discriminator(adversarial, 0)
            logits = network(torch.zeros(2, 3, size, size))
            with pytest.raises(RuntimeError):
                network(torch.zeros(2, 3, size - 2**layers, size - 2**layers))
        assert logits.shape == (2, 1, 1, 1)
    small = replace(config(tmp_path / "run"), size=16)
    with pytest.raises(UserError, match=r"size is 16.*discriminator.* 24 pixels"):
        train_autoencoder(small, source())
    assert not (tmp_path / "run").exists()
