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
from tiny_networks import KINDS, UNET, random_network
from torch import Tensor, nn

from latentddm.diffusion.sampling import sample, time_grid
from latentddm.diffusion.schedules import make_schedule
from latentddm.hub.pipeline import DistributionalScheduler, LatentDDMPipeline
from latentddm.inference.generator import Generator, SamplingConfig
from latentddm.inference.latent_space import LatentSpace
from latentddm.networks.network import NetworkConfig

SHAPE = (3, 8, 8)
MEAN, STD = (0.5, -1.0, 2.0), (2.0, 0.5, 1.0)


@pytest.fixture(scope="module", params=KINDS.values(), ids=KINDS.keys())
def pipe(request: pytest.FixtureRequest, tiny_autoencoder: Path) -> LatentDDMPipeline:
    return make_pipeline(tiny_autoencoder, request.param)


def make_pipeline(
    autoencoder: Path,
    config: NetworkConfig = UNET,
    schedule: str = "flow",
    reads_xi: bool = True,
    **changes: Any,
) -> LatentDDMPipeline:
    network = random_network(config, schedule, **changes).eval()
    for parameter in network.parameters():
        parameter.data /= 3  # draws of about unit size
    pipeline = LatentDDMPipeline(
        network=network,
        vae=AutoencoderKL.from_pretrained(autoencoder),
        scheduler=DistributionalScheduler(schedule=schedule),
        latent_shape=SHAPE,
        latent_mean=MEAN,
        latent_std=STD,
        reads_xi=reads_xi,
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
    drawn = Generator(pipe.network, space, images=0).draw(8, SamplingConfig(seed=2, batch_size=8))
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


def test_every_output_type_holds_the_same_images(pipe: LatentDDMPipeline) -> None:
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


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS.keys())
def test_half_precision_is_close_to_full(tiny_autoencoder: Path, config: NetworkConfig) -> None:
    pipe = make_pipeline(tiny_autoencoder, config)
    full = latents(pipe, pipe.generators(0, 2), 2)
    pipe.network.to(torch.bfloat16)
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
    def __init__(self, latent_channels: int = 3, schedule: str = "flow") -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))  # has the device and the format

    def forward(self, x_t: Tensor, t: Tensor, xi: Tensor | None) -> Tensor:
        assert xi is None  # a mean has no use for it
        t = t.reshape(-1, 1, 1, 1)
        gain = (1 - t) * self.std**2 / ((1 - t) ** 2 * self.std**2 + t**2)
        return self.mean + gain * (x_t - (1 - t) * self.mean)


@pytest.mark.parametrize("scheduler", DIFFUSERS_SCHEDULERS, ids=lambda s: type(s).__name__)
def test_schedulers_of_diffusers_drive_a_mean_denoiser_to_the_right_end(
    tiny_autoencoder: Path, scheduler: Any
) -> None:
    """The probability-flow ODE takes noise z to m + s z."""
    mean_pipe = LatentDDMPipeline(
        GaussianMean(),
        AutoencoderKL.from_pretrained(tiny_autoencoder),
        scheduler,
        SHAPE,
        latent_mean=(0.0,) * 3,
        latent_std=(1.0,) * 3,
        reads_xi=False,
    )
    mean_pipe.set_progress_bar_config(disable=True)
    noise = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    drawn = latents(mean_pipe, mean_pipe.generators(0, 2), 2, num_inference_steps=60, latents=noise)
    expected = GaussianMean.mean + GaussianMean.std * noise
    torch.testing.assert_close(drawn, expected, rtol=0, atol=0.06)


def test_a_scheduler_of_another_process_is_refused(pipe: LatentDDMPipeline) -> None:
    ours, pipe.scheduler = pipe.scheduler, DDIMScheduler()
    with pytest.raises(ValueError, match=r"DDIMScheduler .* use_flow_sigmas"):
        pipe()
    pipe.scheduler = ours


def test_a_scheduler_of_another_schedule_than_the_networks_is_refused(
    tiny_autoencoder: Path,
) -> None:
    cosine = make_pipeline(tiny_autoencoder, schedule="cosine")
    cosine.scheduler = DistributionalScheduler()
    with pytest.raises(ValueError, match=r"'flow', but the network .* 'cosine'"):
        cosine()
    cosine.scheduler = FlowMatchEulerDiscreteScheduler()
    with pytest.raises(ValueError, match=r"FlowMatchEuler.* 'cosine'.* flow sigmas.* --solver"):
        cosine()
    flow = make_pipeline(tiny_autoencoder)
    flow.scheduler = DistributionalScheduler(schedule="cosine")
    with pytest.raises(ValueError, match=r"'cosine', but the network .* 'flow'"):
        flow()


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
        ({"xi_scale": [1.0] * 5}, "xi_scale holds 5 numbers, but there are 4"),
        ({"xi_scale": -1.0}, "xi_scale"),
    ],
)
def test_wrong_arguments_are_named(pipe: LatentDDMPipeline, options: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        pipe(**options)


def test_statistics_that_do_not_fit_the_network_are_refused(pipe: LatentDDMPipeline) -> None:
    with pytest.raises(ValueError, match="latent_mean and latent_std must hold 3 numbers"):
        LatentDDMPipeline(pipe.network, pipe.vae, DistributionalScheduler(), SHAPE, (0.0,), (1.0,))


@pytest.mark.parametrize("schedule", ["flow", "cosine"])
@pytest.mark.parametrize(
    ("xi_scale", "each"),
    [(1.0, 1.0), (0.5, 0.5), ([1.0, 0.5, 0.0], [1.0, 0.5, 0.0]), ([1.0, 0.5], [1.0, 0.5, 0.5])],
)
def test_it_draws_what_sample_draws(
    tiny_autoencoder: Path, schedule: str, xi_scale: float | list[float], each: float | list[float]
) -> None:
    pipe = make_pipeline(tiny_autoencoder, schedule=schedule)
    noise = torch.randn(8, *SHAPE, generator=torch.Generator().manual_seed(0))
    expected = sample(
        pipe.network,
        noise,
        time_grid(3),
        schedule=make_schedule(schedule),
        generator=pipe.generators(4, 8),
        xi_scale=each,
    )
    options = {"num_inference_steps": 3, "latents": noise, "xi_scale": xi_scale}
    drawn = latents(pipe, pipe.generators(4, 8), 8, **options)
    restored = expected * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
    torch.testing.assert_close(drawn, restored)


def test_a_network_that_does_not_read_xi_is_evaluated_without_it(
    tiny_autoencoder: Path, tmp_path: Path
) -> None:
    """And so it stays in a saved folder; its noise is that of the drawing network."""
    pipe = make_pipeline(tiny_autoencoder, classes=2, reads_xi=False)
    noise = torch.randn(8, *SHAPE, generator=torch.Generator().manual_seed(0))

    def mean(x_t: Tensor, t: Tensor, xi: Tensor) -> Tensor:
        return pipe.network(x_t, t)

    expected = sample(mean, noise, time_grid(4))
    restored = expected * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
    drawn = latents(pipe, pipe.generators(0, 8), 8, latents=noise)
    torch.testing.assert_close(drawn, restored)
    guided = {"class_labels": 1, "guidance_scale": 2.0}
    assert not torch.equal(latents(pipe, pipe.generators(0, 8), 8, latents=noise, **guided), drawn)
    with pytest.raises(ValueError, match="xi_scale"):
        pipe(xi_scale=0.5)

    pipe.save_pretrained(tmp_path)
    loaded = LatentDDMPipeline.from_pretrained(tmp_path)
    assert torch.equal(latents(loaded, loaded.generators(0, 8), 8, latents=noise), drawn)
