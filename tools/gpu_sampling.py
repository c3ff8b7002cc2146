"""Images per second at 4 evaluations by number format and path: a part of gpu_report.py.

Every row draws the same latents with the same network in the same evaluations and decodes them with
the same autoencoder. `diffusers` is the loop of its pipelines (FlowMatchEulerDiscreteScheduler,
vae.decode, VaeImageProcessor) over the same modules in the same format, compiled where ours is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from bench_train import Size
from torch import Tensor, nn
from training_steps import seconds

from latentddm.diffusion.sampling import sample, time_grid
from latentddm.evaluation.extractors import default_extractor
from latentddm.inference.precision import (
    HALF,
    EvaluatedNetwork,
    Precision,
    arithmetic,
    convert_products,
    record_cuda_graph,
)
from latentddm.networks.network import NetworkConfig, NetworkModel, make_network

STEPS = 4
TODAY = "ours, default"
BEST_OF_DIFFUSERS = ("diffusers, bf16", "diffusers, bf16, compiled")
REPEATS = 3  # of a timing on CUDA; one elsewhere, where bfloat16 may be emulated
Draw = Callable[[], tuple[Tensor, Tensor]]  # latents [B, C, h, w], pixels uint8 [B, H, W, 3]


def decoder_of(size: Size, device: torch.device) -> nn.Module:
    """An f8 autoencoder of random weights, as large as Stable Diffusion's on a GPU."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    network = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512) if device.type == "cuda" else (16, 16, 16, 16),
        layers_per_block=2,
        norm_num_groups=16,
        latent_channels=size.shape[0],
    )
    network = network.to(device, memory_format=torch.channels_last)
    return network.eval().requires_grad_(False)


class Sampler:
    """The modules of a row: a network in a format and a path, and a decoder."""

    def __init__(
        self,
        network: NetworkModel,
        decoder: Any,
        noise: Tensor,
        precision: Precision | None = None,
        path: str = "",
    ) -> None:
        """path: "" as it is, "graphs" recorded, "compiled" by torch.compile's reduce-overhead.

        "graphs, compiled" is the network recorded and the decoder compiled.
        """
        network, self.decoder = copy.deepcopy(network), copy.deepcopy(decoder)
        self.noise, self.precision = noise, precision
        if noise.device.type == "cuda":
            network.memory_format = torch.channels_last
        convert_products(network, precision)
        nn.Module.to(self.decoder, HALF.get(precision or "", torch.float32))  # without a warning
        recorder = record_cuda_graph if path.startswith("graphs") else None
        self.network = EvaluatedNetwork(network, precision, recorder)
        if path == "compiled":
            self.network.compile(mode="reduce-overhead")
        if path.endswith("compiled"):
            self.decoder.decode = torch.compile(self.decoder.decode, mode="reduce-overhead")

    @torch.no_grad()
    def draw(self) -> tuple[Tensor, Tensor]:
        """Our loop: latents, and pixels uint8 [B, H, W, 3]."""
        generator = torch.Generator(self.noise.device).manual_seed(0)
        latents = sample(self.network, self.noise, time_grid(STEPS), generator=generator)
        pixels = ((self._decoded(latents) / 2 + 0.5) * 255).round_().clamp_(0, 255)
        return latents, pixels.to(torch.uint8).permute(0, 2, 3, 1)

    @torch.no_grad()
    def draw_as_diffusers(self) -> tuple[Tensor, Tensor]:
        """The same evaluations in the style of a pipeline of diffusers."""
        from diffusers import FlowMatchEulerDiscreteScheduler
        from diffusers.image_processor import VaeImageProcessor

        x, device = self.noise, self.noise.device
        scheduler, generator = FlowMatchEulerDiscreteScheduler(), torch.Generator(device)
        generator.manual_seed(0)
        scheduler.set_timesteps(sigmas=time_grid(STEPS)[:-1].tolist(), device=device)
        for timestep in scheduler.timesteps:
            t = timestep / scheduler.config.num_train_timesteps
            xi = torch.randn(x.shape, generator=generator, device=device)
            x0 = self.network(x, t.expand(len(x)), xi)
            x = scheduler.step((x - x0) / t, timestep, x, return_dict=False)[0]
        pictures = VaeImageProcessor().postprocess(self._decoded(x), output_type="pt")
        return x, (pictures * 255).round().to(torch.uint8).permute(0, 2, 3, 1)

    def _decoded(self, latents: Tensor) -> Tensor:
        with arithmetic(None if self.precision in HALF else self.precision, latents.device.type):
            return self.decoder.decode(latents.to(self.decoder.dtype), return_dict=False)[0].float()


def bench_sampling(
    size: Size, device: torch.device, compiled: bool = False
) -> list[dict[str, Any]]:
    """The UNet in every format and path beside diffusers, and the other networks in bf16.

    latent_*: mean and largest difference of the latents from float32's, in their standard
    deviations; levels_*: of the pictures, of 255; features: relative, of the built-in feature
    space. x today: of the images/s of the default; x diffusers: of diffusers' best row of this
    table.
    """
    noise = torch.randn(size.batch, *size.shape, generator=torch.Generator().manual_seed(0))
    noise, decoder = noise.to(device), decoder_of(size, device)
    network = network_of(size.unet, size, device)
    on_cuda = device.type == "cuda"
    formats: tuple[Precision, ...] = ("float32", "tf32", "bf16", "fp16")
    chosen = {TODAY: Sampler(network, decoder, noise)}
    if compiled:
        chosen["ours, bf16, compiled"] = Sampler(network, decoder, noise, "bf16", "compiled")
        if on_cuda:
            recorded = Sampler(network, decoder, noise, "bf16", "graphs, compiled")
            chosen["ours, bf16, CUDA graphs, decoder compiled"] = recorded
    else:
        for precision in formats if on_cuda else ("float32", "bf16"):
            chosen[f"ours, {precision}"] = Sampler(network, decoder, noise, precision)
        if on_cuda:
            chosen["ours, bf16, CUDA graphs"] = Sampler(network, decoder, noise, "bf16", "graphs")
    draws: dict[str, Draw] = {name: sampler.draw for name, sampler in chosen.items()}
    draws[BEST_OF_DIFFUSERS[0]] = Sampler(network, decoder, noise, "bf16").draw_as_diffusers
    if compiled:
        other = Sampler(network, decoder, noise, "bf16", "compiled")
        draws[BEST_OF_DIFFUSERS[1]] = other.draw_as_diffusers
    expected = Sampler(network, decoder, noise, "float32").draw()
    rows = [_row(name, draw, expected, device, size.batch) for name, draw in draws.items()]
    _compare(rows)
    if not compiled:
        others = {
            "UNet, output": replace(size.unet, expansion="output"),
            "DiT": size.dit,
        }
        for name, config in others.items():
            one = network_of(config, size, device)
            truth = Sampler(one, decoder, noise, "float32").draw()
            draw = Sampler(one, decoder, noise, "bf16").draw
            rows.append(_row(f"{name}, bf16", draw, truth, device, size.batch))
            rows[-1] |= {"x_today": "-", "x_diffusers": "-"}
    return rows


def network_of(config: NetworkConfig, size: Size, device: torch.device) -> NetworkModel:
    """A network whose draws depend on all its layers: none at its initial zero."""
    torch.manual_seed(0)
    network = make_network(config, size.shape)
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return network.to(device).eval().requires_grad_(False)


def _row(
    name: str, draw: Draw, expected: tuple[Tensor, Tensor], device: torch.device, batch: int
) -> dict[str, Any]:
    latents, pixels = draw()  # kernels are chosen, graphs recorded, code compiled
    apart = (latents - expected[0]).abs() / expected[0].std()
    levels = (pixels.float() - expected[1].float()).abs()
    extractor, repeats = default_extractor(), REPEATS if device.type == "cuda" else 1
    ours, theirs = (extractor(each.cpu()) for each in (pixels, expected[1]))
    return {
        "variant": name,
        "images_per_second": batch / seconds(draw, device, repeats),
        "latent_mean": float(apart.mean()),
        "latent_largest": float(apart.max()),
        "levels_mean": float(levels.mean()),
        "levels_largest": float(levels.max()),
        "features": float((ours - theirs).norm() / theirs.norm()),
    }


def _compare(rows: list[dict[str, Any]]) -> None:
    speeds = {row["variant"]: row["images_per_second"] for row in rows}
    best = max(speed for name, speed in speeds.items() if name in BEST_OF_DIFFUSERS)
    for row in rows:
        row["x_today"] = row["images_per_second"] / speeds[TODAY]
        row["x_diffusers"] = row["images_per_second"] / best
