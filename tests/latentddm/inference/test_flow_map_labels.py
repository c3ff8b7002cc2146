"""A flow map follows a label, with guidance as an extrapolation of each step, also exported."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_networks import UNET
from torch import Tensor

from autoencoder.store import LatentStore
from latentddm.diffusion.flow_maps import sample_flow_map
from latentddm.diffusion.sampling import time_grid
from latentddm.engine.errors import UserError
from latentddm.engine.seeding import torch_generator
from latentddm.hub.pipeline import DistributionalScheduler, LatentDDMPipeline
from latentddm.inference.generator import Generator, SamplingConfig
from latentddm.inference.latent_space import LatentSpace
from latentddm.networks.network import make_network

CLASSES, COUNT, STEPS = 3, 2, 2


@pytest.fixture(scope="module")
def generator(tiny_store: Path) -> Generator:
    space = LatentSpace.of_store(LatentStore(tiny_store))
    config = replace(UNET, times=2, classes=CLASSES)
    torch.manual_seed(0)
    network = make_network(config, space.shape)
    for parameter in network.parameters():  # none at its initial zero
        torch.nn.init.normal_(parameter, std=0.15)
    torch.nn.init.normal_(network.time_embedding.label.weight, std=3.0)
    return Generator(network.eval(), space, images=0, reads_xi=False, flow_map="free")


def drawn_by_hand(generator: Generator, label: int, guidance: float) -> Tensor:
    """Raw latents: both branches evaluated one after the other."""

    def step(x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        given, without = (
            generator.network(x_t, t, None, torch.full((COUNT,), each), s)
            for each in (label, CLASSES)
        )
        return without + guidance * (given - without)

    random = [torch_generator(0, "sample", index) for index in range(COUNT)]
    noise = torch.stack([torch.randn(generator.space.shape, generator=each) for each in random])
    return generator.space.restore(sample_flow_map(step, noise, time_grid(STEPS)))


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_a_label_and_its_guidance_act_on_every_step(generator: Generator, guidance: float) -> None:
    expected = drawn_by_hand(generator, 1, guidance)
    sampling = SamplingConfig(steps=STEPS, label=1, guidance=guidance)
    torch.testing.assert_close(generator.draw(COUNT, sampling), expected, atol=1e-4, rtol=1e-4)
    others = (drawn_by_hand(generator, 2, guidance), drawn_by_hand(generator, 1, 0.0))
    tolerance = 1e-4 * (1 + expected.abs().max())
    assert min((expected - other).abs().max() for other in others) > 20 * tolerance


def test_an_exported_flow_map_has_a_label_for_each_image(generator: Generator) -> None:
    pipeline = LatentDDMPipeline(
        network=generator.network,
        vae=None,
        scheduler=DistributionalScheduler(),
        latent_shape=generator.space.shape,
        latent_mean=generator.space.mean,
        latent_std=generator.space.std,
        reads_xi=False,
        flow_map="free",
    )
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline(
        COUNT,
        pipeline.generators(0, COUNT),
        num_inference_steps=STEPS,
        class_labels=[1, 2],
        guidance_scale=2.5,
        output_type="latent",
    ).images
    rows = [drawn_by_hand(generator, label, 2.5)[row] for row, label in enumerate((1, 2))]
    torch.testing.assert_close(drawn, torch.stack(rows), atol=1e-4, rtol=1e-4)


def test_labels_that_a_flow_map_has_not_are_refused(generator: Generator) -> None:
    with pytest.raises(UserError, match=r"0 \.\.\. 2"):
        generator.draw(1, SamplingConfig(label=3))
    with pytest.raises(UserError, match="guidance needs a label"):
        generator.draw(1, SamplingConfig(guidance=2.0))
