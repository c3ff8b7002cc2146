"""Sampling with a trained run: the stage behind `latentddm sample`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autoencoder.decode import decode_files
from autoencoder.latent_files import save_latents
from latentddm.diffusion.flow_maps import FlowMap, sample_flow_map
from latentddm.diffusion.guidance import GuidedDenoiser
from latentddm.diffusion.sampling import Denoiser, continued, least_safety, xi_scales
from latentddm.diffusion.schedules import Schedule, make_schedule
from latentddm.diffusion.solvers import evaluations_of, solve, solver_grid, steps_within
from latentddm.engine.checkpoint import Checkpoint, newest_checkpoint, valid_checkpoints
from latentddm.engine.config import build, to_plain
from latentddm.engine.devices import default_device
from latentddm.engine.errors import UserError, one_line
from latentddm.engine.posthoc_ema import load_average
from latentddm.engine.progress import Progress
from latentddm.engine.run import RunFolder, claim_folder
from latentddm.engine.seeding import torch_generator
from latentddm.inference.flow_maps import FlowMapNetwork
from latentddm.inference.latent_space import LatentSpace
from latentddm.inference.settings import SamplingConfig, class_labels, flow_map_times
from latentddm.networks.network import NetworkConfig, NetworkModel, make_network

RUN_KIND = "generator"  # of a run of `latentddm train` or `distill`
LATENTS_NAME, SETTINGS_NAME = "latents.safetensors", "samples.json"


@dataclass(frozen=True)
class Generator:
    """A trained network and the space of its latents."""

    network: NetworkModel
    space: LatentSpace
    images: int  # seen in training
    reads_xi: bool = True  # False: trained as plain diffusion, evaluated without xi
    flow_map: str | None = None  # trained as a flow map: the steps it has learnt

    @classmethod
    def load(
        cls,
        run: Path | str,
        device: torch.device | str = "cpu",
        images: int | None = None,
        ema: str | None = None,
    ) -> Generator:
        """The averaged weights of a run: of its newest valid checkpoint, or of that at `images`.

        ema: the width or the file of another average than the first that was tracked.
        """
        folder = RunFolder.open(run, RUN_KIND)
        checkpoint = checkpoint_at(folder, images)
        config, space = folder.read_config(), LatentSpace.read(folder.path)
        source = str(folder.config_path)
        try:
            settings: NetworkConfig = build(NetworkConfig, config["network"], source, "network.")
            network = make_network(settings, space.shape, config["schedule"])
            draws = reads_xi(config, checkpoint.phase)
            steps_learnt = flow_map(config, checkpoint.phase)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{source} is not the config of a generator ({one_line(error)}); restore it."
            ) from error
        load_average(folder, checkpoint, ema, network)
        network.eval().requires_grad_(False).to(device)
        return cls(network, space, checkpoint.images, draws, steps_learnt)

    def draw(
        self, count: int, config: SamplingConfig, first: int = 0, show_progress: bool = False
    ) -> Tensor:
        """Raw latents [count, C, H, W], float32 on the CPU, of the images from `first` on.

        UserError for settings outside their range.
        """
        if count < 1 or config.batch_size < 1:
            raise UserError("The number of images and the batch size must be at least 1.")
        times = self.times(config)
        batches = []
        with Progress(count, "sample", show=show_progress) as progress:
            for start in range(first, first + count, config.batch_size):
                indices = range(start, min(start + config.batch_size, first + count))
                batches.append(self._draw_batch(indices, times, config).cpu())
                progress.update(len(indices))
        return self.space.restore(torch.cat(batches))

    @property
    def schedule(self) -> Schedule:
        """The noise schedule that the network was trained with."""
        return make_schedule(self.network.config["schedule"])

    @property
    def least_safety(self) -> float:
        """The least distance of the times from t = 1 and t = 0."""
        return least_safety(self.network.config["prediction"], self.schedule)

    def times(self, config: SamplingConfig) -> Tensor:
        """The times of the solver's steps; UserError for settings outside their range."""
        if not 0 <= config.churn <= 1:
            raise UserError(f"churn must lie in [0, 1], not {config.churn}.")
        if config.churn and config.solver != "ddim":
            raise UserError(f"churn is a setting of ddim; leave it out with {config.solver}.")
        if not 0 < config.noise_scale < math.inf:
            raise UserError(f"noise_scale must be positive, not {config.noise_scale}.")
        if self.flow_map:
            return flow_map_times(self.flow_map, config)
        solver, safety = config.solver, max(config.safety, self.least_safety)
        try:
            steps = steps_within(solver, config.steps)
            times = solver_grid(solver, steps, config.grid, safety, config.power, self.schedule)
            calls = evaluations_of(solver, steps)
            xi_scales(continued(config.xi_scale, calls), calls)
        except ValueError as error:
            raise UserError(str(error)) from None
        return times

    def denoiser(self, config: SamplingConfig, indices: Sequence[int] = ()) -> Denoiser:
        """The network, with a label if one is given; UserError where it has no such label.

        indices: of the images, for the label "every".
        """
        return self._with_label(denoiser_of(self.network, self.reads_xi), config, indices)

    def flow_map_denoiser(self, config: SamplingConfig, indices: Sequence[int] = ()) -> FlowMap:
        """The network of a flow map, with a label if one is given, as `denoiser`."""
        network = FlowMapNetwork(self.network)
        if config.label is None and config.guidance == 1:
            return network

        def with_label(x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
            return self._with_label(network.ending_at(s), config, indices)(x_t, t, x_t)

        return with_label

    def _with_label(
        self, denoiser: Any, config: SamplingConfig, indices: Sequence[int]
    ) -> Denoiser:
        if config.label is None:
            if config.guidance != 1:
                raise UserError("guidance needs a label; add --label.")
            return denoiser
        classes = self.network.config["classes"]
        if not classes:
            raise UserError(
                "The run was trained without labels (network.classes is 0); leave --label out."
            )
        try:
            labels = class_labels(config.label, indices, classes)
            return GuidedDenoiser(denoiser, labels, classes, config.guidance)
        except ValueError as error:
            raise UserError(f"{error}.") from None

    def _draw_batch(self, indices: range, times: Tensor, config: SamplingConfig) -> Tensor:
        generators = [torch_generator(config.seed, "sample", index) for index in indices]
        noise = torch.stack([torch.randn(self.space.shape, generator=g) for g in generators])
        x = config.noise_scale * noise.to(self.network.device)
        if self.flow_map:
            return sample_flow_map(self.flow_map_denoiser(config, indices), x, times)
        return solve(
            self.denoiser(config, indices),
            x,
            times,
            config.solver,
            churn=config.churn,
            generator=generators,
            schedule=self.schedule,
            xi_scale=continued(config.xi_scale, evaluations_of(config.solver, len(times) - 1)),
        )


def checkpoint_at(folder: RunFolder, images: int | None = None) -> Checkpoint:
    """A run's newest valid checkpoint, or the one at `images` seen; UserError if none is."""
    if images is None:
        newest = newest_checkpoint(folder.checkpoints)
        if newest is None:
            raise UserError(f"{folder.path} holds no valid checkpoint yet; train it first.")
        return newest
    others = []
    for checkpoint in valid_checkpoints(folder.checkpoints):  # each is hashed: no more than needed
        if checkpoint.images == images:
            return checkpoint
        others.append(str(checkpoint.images))
    raise UserError(
        f"{folder.path} holds no valid checkpoint at {images} images, but "
        f"{', '.join(others) or 'none at all'}; "
        "train with a larger loop.keep_checkpoints to keep more."
    )


class MeanDenoiser:
    """A network that is evaluated without xi: a denoiser of the mean."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def __call__(
        self, x_t: Tensor, t: Tensor, xi: Tensor | None, labels: Tensor | None = None
    ) -> Tensor:
        """E[x_0 | x_t], [B, C, H, W]; xi is not read."""
        return self.network(x_t, t, None, labels)


def denoiser_of(network: nn.Module, reads_xi: bool) -> nn.Module | MeanDenoiser:
    """A network as samplers call it: of draws, or of the mean."""
    return network if reads_xi else MeanDenoiser(network)


def reads_xi(config: Mapping[str, Any], phase: int) -> bool:
    """Whether the phase `phase` of a run with this config trains draws; a student's does not."""
    phases = config.get("phases", [])
    return bool(phases) and phases[phase]["objective"].get("draws", 0) > 0


def flow_map(config: Mapping[str, Any], phase: int) -> str | None:
    """The steps that the phase `phase` of a run with this config has learnt; None: no flow map."""
    phases = config.get("phases", [])
    return phases[phase]["objective"].get("flow_map") if phases else None


def write_samples(
    run: Path, count: int, config: SamplingConfig, output: Path, decode: bool = False
) -> Path:
    """Draw `count` samples of a run into the folder `output`; returns what holds them.

    latents.safetensors holds the raw latents, samples.json the settings; with `decode`, the images
    are in output/images. A second call with the same settings finishes an interrupted one.
    UserError if the folder holds something else.
    """
    generator = Generator.load(run, device=default_device(), ema=config.ema)
    settings = {"run": str(run), "images_seen": generator.images, "count": count}
    claim_folder(output, SETTINGS_NAME, settings | to_plain(config), "samples")
    latents = generator.draw(count, config, show_progress=True)
    generator.space.write(output)
    path = output / LATENTS_NAME
    save_latents(path, latents, generator.space.fingerprint)
    if not decode:
        return path
    autoencoder = generator.space.load_autoencoder(default_device())
    decode_files(path, output / "images", autoencoder, batch_size=config.batch_size)
    return output / "images"
