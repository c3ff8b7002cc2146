"""The pipeline draws what `latentddm sample` draws, to the bit whatever the batch, and is saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from latentddm.diffusion.sampling import sample, time_grid
from latentddm.hub.pipeline import DistributionalScheduler, LatentDDMPipeline
from latentddm.inference.generator import Generator, SamplingConfig
from latentddm.inference.latent_space import LatentSpace
from latentddm.networks.unet import UNet

SHAPE = (3, 8, 8)
MEAN, STD = (0.5, -1.0, 2.0), (2.0, 0.5, 1.0)


def make_unet(classes: int = 0, prediction: str = "v") -> UNet:
    torch.manual_seed(0)
    network = UNet(
        latent_channels=3,
        channels=16,
        multipliers=(1, 2),
        blocks=1,
        attention_levels=(1,),
        head_channels=16,
        classes=classes,
        prediction=prediction,
    )
    for parameter in network.parameters():  # what starts at zero would hide the differences
        nn.init.normal_(parameter, std=0.05)
    return network.eval()


@pytest.fixture(scope="module")
def pipe(tiny_autoencoder: Path) -> LatentDDMPipeline:
    return make_pipeline(tiny_autoencoder)


def make_pipeline(autoencoder: Path, **options: Any) -> LatentDDMPipeline:
    pipeline = LatentDDMPipeline(
        unet=make_unet(**options),
        vae=AutoencoderKL.from_pretrained(autoencoder),
        scheduler=DistributionalScheduler(),
        latent_shape=SHAPE,
        latent_mean=MEAN,
        latent_std=STD,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def latents(pipeline: LatentDDMPipeline, generator: Any, count: int, **options: Any) -> Tensor:
    return pipeline(count, generator, output_type="latent", **options).images


@pytest.mark.parametrize("churn", [0.0, 1.0])
def test_an_image_is_bit_equal_however_many_are_drawn_with_it(
    pipe: LatentDDMPipeline, churn: float
) -> None:
    pipe.scheduler = DistributionalScheduler(churn=churn)
    whole = latents(pipe, pipe.generators(5, 11), 11)
    for first, count in ((0, 1), (3, 8), (1, 9), (10, 1)):
        part = latents(pipe, pipe.generators(5, count, first), count)
        assert torch.equal(part, whole[first : first + count])
    images = pipe(11, pipe.generators(5, 11), output_type="np").images
    alone = pipe(1, pipe.generators(5, 1, first=7), output_type="np").images
    assert np.array_equal(alone[0], images[7])
    pipe.scheduler = DistributionalScheduler()


def test_one_generator_gives_the_same_images_in_one_call_or_in_two(
    pipe: LatentDDMPipeline,
) -> None:
    whole = latents(pipe, torch.Generator().manual_seed(3), 4)
    generator = torch.Generator().manual_seed(3)
    halves = [latents(pipe, generator, 2), latents(pipe, generator, 2)]
    assert torch.equal(torch.cat(halves), whole)
    assert not torch.equal(whole[0], whole[1])


def test_it_draws_what_the_sample_command_draws(
    pipe: LatentDDMPipeline, tiny_autoencoder: Path
) -> None:
    space = LatentSpace(SHAPE, MEAN, STD, str(tiny_autoencoder), "")
    drawn = Generator(pipe.unet, space, images=0).draw(8, SamplingConfig(seed=2, batch_size=8))
    assert torch.equal(latents(pipe, pipe.generators(2, 8), 8), drawn)


def test_saved_and_loaded_it_draws_the_same(pipe: LatentDDMPipeline, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path)
    assert not list(tmp_path.rglob("*.bin"))
    loaded = LatentDDMPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.config["latent_mean"] == list(MEAN)
    generators = loaded.generators(0, 2)
    assert torch.equal(latents(loaded, generators, 2), latents(pipe, pipe.generators(0, 2), 2))
    AutoencoderKL.from_pretrained(tmp_path, subfolder="vae")  # with diffusers alone


def test_every_output_type_says_the_same(pipe: LatentDDMPipeline) -> None:
    outputs = {
        kind: pipe(2, pipe.generators(1, 2), output_type=kind).images
        for kind in ("pil", "np", "pt", "latent")
    }
    assert outputs["np"].shape == (2, 32, 32, 3)
    assert outputs["pt"].shape == (2, 3, 32, 32)
    assert outputs["latent"].shape == (2, *SHAPE)
    assert np.array_equal(outputs["np"], outputs["pt"].permute(0, 2, 3, 1).numpy())
    pictures = np.stack([np.asarray(picture) for picture in outputs["pil"]])
    assert np.array_equal(pictures, np.round(outputs["np"] * 255).astype(np.uint8))
    assert isinstance(pipe(return_dict=False, num_inference_steps=1), tuple)


def test_tiles_give_nearly_the_same_picture(pipe: LatentDDMPipeline) -> None:
    noise = torch.randn(1, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    whole = pipe(1, pipe.generators(0, 1), 1, latents=noise, output_type="np").images
    pipe.enable_vae_tiling(32)
    tiled = pipe(1, pipe.generators(0, 1), 1, latents=noise, output_type="np").images
    pipe.disable_vae_tiling()
    assert np.abs(tiled - whole).mean() < 1 / 255


def test_a_callback_sees_every_step_and_can_change_the_state(pipe: LatentDDMPipeline) -> None:
    seen = []

    def watch(pipeline: Any, step: int, timestep: Tensor, tensors: dict) -> dict:
        seen.append((step, float(timestep), sorted(tensors)))
        return {"latents": torch.zeros_like(tensors["latents"])} if step == 2 else {}

    drawn = latents(
        pipe,
        pipe.generators(0, 1),
        1,
        num_inference_steps=3,
        callback_on_step_end=watch,
        callback_on_step_end_tensor_inputs=["latents", "x0"],
    )
    assert [step for step, _, _ in seen] == [0, 1, 2]
    assert seen[0][1:] == (1000.0, ["latents", "x0"])
    torch.testing.assert_close(drawn[0].mean(dim=(1, 2)), torch.tensor(MEAN))


def test_labels_and_guidance_reach_the_network(tiny_autoencoder: Path) -> None:
    pipe = make_pipeline(tiny_autoencoder, classes=3)

    def draw(**options: Any) -> Tensor:
        return latents(pipe, pipe.generators(0, 2), 2, **options)

    mixed = draw(class_labels=[0, 2])
    assert torch.equal(mixed[0], draw(class_labels=0)[0])
    assert torch.equal(mixed[1], draw(class_labels=2)[1])
    assert not torch.equal(mixed, draw())
    assert not torch.equal(mixed, draw(class_labels=[0, 2], guidance_scale=3.0))


def test_half_precision_is_close_to_full(tiny_autoencoder: Path) -> None:
    pipe = make_pipeline(tiny_autoencoder)
    full = latents(pipe, pipe.generators(0, 2), 2)
    pipe.unet.to(torch.bfloat16)
    half = latents(pipe, pipe.generators(0, 2), 2)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, full, rtol=0.1, atol=0.1)


FLOW = {"use_flow_sigmas": True}
DIFFUSERS_SCHEDULERS = [
    FlowMatchEulerDiscreteScheduler(),
    FlowMatchHeunDiscreteScheduler(),
    DPMSolverMultistepScheduler(prediction_type="flow_prediction", **FLOW),
    DPMSolverMultistepScheduler(prediction_type="sample", **FLOW),
    UniPCMultistepScheduler(prediction_type="flow_prediction", **FLOW),
]


class GaussianMean(ModelMixin, ConfigMixin):
    """E[x_0 | x_t] for data N(m, s^2): the mean denoiser, exact."""

    mean, std = 0.7, 0.5

    @register_to_config
    def __init__(self, latent_channels: int = 3) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))  # says its device and its format

    def forward(self, x_t: Tensor, t: Tensor, xi: Tensor) -> Tensor:
        t = t.reshape(-1, 1, 1, 1)
        gain = (1 - t) * self.std**2 / ((1 - t) ** 2 * self.std**2 + t**2)
        return self.mean + gain * (x_t - (1 - t) * self.mean)


@pytest.mark.parametrize("scheduler", DIFFUSERS_SCHEDULERS, ids=lambda s: type(s).__name__)
def test_schedulers_of_diffusers_drive_a_mean_denoiser_to_the_right_end(
    pipe: LatentDDMPipeline, scheduler: Any
) -> None:
    """The probability-flow ODE takes noise z to m + s z."""
    mean_pipe = LatentDDMPipeline(
        GaussianMean(), pipe.vae, scheduler, SHAPE, latent_mean=(0.0,) * 3, latent_std=(1.0,) * 3
    )
    mean_pipe.set_progress_bar_config(disable=True)
    noise = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    drawn = latents(mean_pipe, mean_pipe.generators(0, 2), 2, num_inference_steps=60, latents=noise)
    expected = GaussianMean.mean + GaussianMean.std * noise
    torch.testing.assert_close(drawn, expected, rtol=0, atol=0.06)


def test_a_scheduler_of_another_process_is_refused(pipe: LatentDDMPipeline) -> None:
    ours, pipe.scheduler = pipe.scheduler, DDIMScheduler()
    with pytest.raises(ValueError, match="DDIMScheduler is not set for this process"):
        pipe()
    pipe.scheduler = ours


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"output_type": "jpeg"}, "output_type"),
        ({"generator": [torch.Generator()], "batch_size": 2}, "1 generators were given for 2"),
        ({"class_labels": 1}, "without labels"),
        ({"guidance_scale": 2.0}, "class_labels"),
        ({"latents": torch.zeros(1, 4, 8, 8)}, "latents must be"),
        ({"callback_on_step_end_tensor_inputs": ["prompt"]}, "prompt"),
    ],
)
def test_wrong_arguments_are_named(pipe: LatentDDMPipeline, options: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        pipe(**options)


def test_statistics_that_do_not_fit_the_network_are_refused(pipe: LatentDDMPipeline) -> None:
    with pytest.raises(ValueError, match="must hold 3 numbers"):
        LatentDDMPipeline(pipe.unet, pipe.vae, DistributionalScheduler(), SHAPE, (0.0,), (1.0,))


def test_it_is_sample_with_other_words(pipe: LatentDDMPipeline) -> None:
    noise = torch.randn(8, *SHAPE, generator=torch.Generator().manual_seed(0))
    generators = pipe.generators(4, 8)
    expected = sample(pipe.unet, noise, time_grid(3), generator=pipe.generators(4, 8))
    drawn = latents(pipe, generators, 8, num_inference_steps=3, latents=noise)
    restored = expected * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
    torch.testing.assert_close(drawn, restored)
