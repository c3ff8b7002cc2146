"""Every preset of configs/ is valid: it parses, its networks are built, its losses can be computed.

On fake tensors: shapes without memory or arithmetic.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from view_inputs import InMemory

from autoencoder.training import AutoencoderConfig
from autoencoder.training.network import build_network, downsampling_factor
from latentddm.demo import DemoConfig
from latentddm.demo.config import Plan
from latentddm.demo.sizing import fitting_generator
from latentddm.diffusion.schedules import make_schedule
from latentddm.engine.config import build, load_config, to_plain
from latentddm.networks.network import make_network
from latentddm.networks.unet import UNetConfig
from latentddm.training.config import TrainConfig
from latentddm.training.distillation import DistillConfig
from latentddm.training.objective import DistributionalObjective

CONFIGS = Path(__file__).parents[1] / "configs"
BATCH = 2
# Shape of the latents of each preset, [C, H, W], as in its first comment.
GENERATORS = {
    "celeba64.yaml": (3, 64, 64),
    "celebahq256.yaml": (4, 32, 32),
    "celebahq256_f4.yaml": (3, 64, 64),
    "cifar10.yaml": (3, 32, 32),
    "cifar10_unet.yaml": (3, 32, 32),
    "faces128.yaml": (4, 16, 16),
    "faces64_taef2.yaml": (32, 8, 8),
    "lsun_bedroom256.yaml": (4, 32, 32),
    "lsun_bedroom64.yaml": (3, 64, 64),
    "portraits_dit.yaml": (6, 4, 4),
    "portraits_generator.yaml": (6, 4, 4),
    "portraits_plain.yaml": (6, 4, 4),
}
AUTOENCODERS = {
    "autoencoder_f4.yaml": (3, 64, 64),
    "autoencoder_f8.yaml": (4, 32, 32),
    "autoencoder_f8_small.yaml": (4, 16, 16),
    "autoencoder_f16.yaml": (16, 16, 16),
    "faces128_autoencoder.yaml": (4, 16, 16),
    "portraits_autoencoder.yaml": (6, 4, 4),
}
DEMO, DEMO_SHAPE = "demo.yaml", (6, 4, 4)
OWN = "demo_own.yaml"
DISTILL = "distill.yaml"


def test_every_preset_is_tested_here() -> None:
    names = {path.name for path in CONFIGS.glob("*.yaml")}
    assert names == {*GENERATORS, *AUTOENCODERS, DEMO, OWN, DISTILL}


@pytest.mark.parametrize(("name", "shape"), GENERATORS.items())
def test_a_generator_preset_can_be_trained(name: str, shape: tuple[int, int, int]) -> None:
    config = load_config(TrainConfig, CONFIGS / name, ["store=store", "output=run"])
    assert build(TrainConfig, to_plain(config), name) == config
    kinds = [phase.objective.kind for phase in config.phases]
    assert "plain" in kinds
    if name != "portraits_plain.yaml":
        assert "ddm" in kinds[kinds.index("plain") :]
    check_losses(config, shape)


def check_losses(config: TrainConfig, shape: tuple[int, int, int]) -> None:
    """The network takes such latents, and each phase has one loss for each sample."""
    schedule = make_schedule(config.schedule)
    with FakeTensorMode():
        network = make_network(config.network, shape, config.schedule)
        network.check_latents(shape)
        x0, t = torch.empty(BATCH, *shape), torch.empty(BATCH)
        inputs = InMemory(torch.empty(4096, *shape), schedule)
        for phase in config.phases:
            objective = phase.objective.prepared(inputs)
            xi = objective.xi(lambda *sizes: torch.empty(BATCH, *sizes), shape)
            drawn = network(x0, t, xi)
            draws = (objective.draw_count,) if objective.draw_count else ()
            assert drawn.shape == (BATCH, *draws, *shape)
            assert objective.terms(drawn, x0, t, schedule).loss.shape == (BATCH,)


@pytest.mark.parametrize(("name", "shape"), AUTOENCODERS.items())
def test_an_autoencoder_preset_can_be_trained(name: str, shape: tuple[int, int, int]) -> None:
    config = load_config(AutoencoderConfig, CONFIGS / name, ["images=images", "output=run"])
    assert build(AutoencoderConfig, to_plain(config), name) == config
    with FakeTensorMode():
        network = build_network(config)
        images = torch.empty(1, 3, config.size, config.size)
        latents = network.encode(images).latent_dist.mean
        assert latents.shape == (1, *shape)
        assert network.decode(latents).sample.shape == images.shape


def test_the_demo_can_be_run() -> None:
    config = load_config(DemoConfig, CONFIGS / DEMO)
    assert build(DemoConfig, to_plain(config), DEMO) == config
    autoencoder = build_network(replace(config.autoencoder, size=config.size))
    edge = config.size // downsampling_factor(autoencoder)
    assert (autoencoder.config["latent_channels"], edge, edge) == DEMO_SHAPE
    network = config.generator.network
    assert config.whole_patch
    assert isinstance(network, UNetConfig)
    generator = replace(config.generator, network=replace(network, patch_size=edge))
    assert [phase.objective.kind for phase in generator.phases] == ["plain", "ddm"]
    check_losses(generator, DEMO_SHAPE)


@pytest.mark.parametrize("shape", [DEMO_SHAPE, (32, 8, 8), (4, 8, 8), (4, 16, 16)])
def test_the_demo_on_other_images_has_a_network_for_every_latent(
    shape: tuple[int, int, int],
) -> None:
    """One patch for the embedded autoencoder's latents, positions with attention for others."""
    config = load_config(DemoConfig, CONFIGS / OWN)
    assert build(DemoConfig, to_plain(config), OWN) == config
    config = replace(config, plan=Plan(autoencoder=None, sizes=None))
    generator = fitting_generator(config, shape)
    network = generator.network
    assert isinstance(network, UNetConfig)
    whole = shape == DEMO_SHAPE
    assert network.patch_size == (4 if whole else 2)
    assert network.attention_levels == (() if whole else (0,))
    objective = generator.phases[-1].objective
    assert isinstance(objective, DistributionalObjective)
    assert ("visible" in objective.score.views) == (math.prod(shape) >= 1000)
    check_losses(generator, shape)


def test_a_distillation_has_a_loop_and_a_number_of_steps() -> None:
    config = load_config(DistillConfig, CONFIGS / DISTILL, ["teacher=teacher", "output=student"])
    assert build(DistillConfig, to_plain(config), DISTILL) == config
    assert config.steps >= 1
    assert config.loop.images % config.loop.batch_size == 0
