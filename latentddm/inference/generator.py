"""A trained run, loaded and drawn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latentddm.diffusion.flow_maps import FlowMap, sample_flow_map
from latentddm.diffusion.guidance import GuidedDenoiser
from latentddm.diffusion.sampling import Denoiser, extend_scales, least_safety, xi_scales
from latentddm.diffusion.schedules import Schedule, make_schedule
from latentddm.diffusion.solvers import (
    check_noise,
    evaluations_of,
    solver_grid,
    steps_within,
)
from latentddm.engine.checkpoint import Checkpoint, newest_checkpoint, valid_checkpoints
from latentddm.engine.config import build
from latentddm.engine.errors import UserError, one_line
from latentddm.engine.posthoc_ema import load_average
from latentddm.engine.progress import Progress
from latentddm.engine.run import RunFolder
from latentddm.engine.seeding import torch_generator
from latentddm.inference.flow_maps import FlowMapNetwork
from latentddm.inference.latent_space import LatentSpace
from latentddm.inference.precision import (
    EvaluatedNetwork,
    Precision,
    Recorder,
    check_precision,
    convert_products,
    recorder_of,
)
from latentddm.inference.run_settings import RunSettings
from latentddm.inference.settings import SamplingConfig, class_labels, flow_map_times, solve_by
from latentddm.networks.network import NetworkConfig, NetworkModel, make_network

RUN_KIND = "generator"  # of a run of `latentddm train` or `distill`


@dataclass(frozen=True)
class Generator:
    """A trained network and the space of its latents."""

    network: NetworkModel
    space: LatentSpace
    images: int  # seen in training
    reads_xi: bool = True  # False: trained as plain diffusion, evaluated without xi
    flow_map: str | None = None  # trained as a flow map: the steps it has learnt
    precision: Precision | None = None  # of products; None: torch's own
    recorder: Recorder | None = None  # of the network's evaluations as CUDA graphs
    run_settings: RunSettings = field(default_factory=RunSettings)

    @classmethod
    def load(
        cls,
        run: Path | str,
        device: torch.device | str = "cpu",
        images: int | None = None,
        ema: str | None = None,
        precision: Precision | None = None,
        cuda_graphs: bool = False,
    ) -> Generator:
        """The averaged weights of a run: of its newest valid checkpoint, or of that at `images`.

        ema: the width or the file of another average than the first that was tracked. precision,
        cuda_graphs: see `inference.precision`.
        """
        device = torch.device(device)
        check_precision(precision, device)
        recorder = recorder_of(cuda_graphs, device)
        folder = RunFolder.open(run, RUN_KIND)
        checkpoint = checkpoint_at(folder, images)
        config, space = folder.read_config(), LatentSpace.read(folder.path)
        source = str(folder.config_path)
        try:
            settings: NetworkConfig = build(NetworkConfig, config["network"], source, "network.")
            network = make_network(settings, space.shape, config["schedule"])
            draws = reads_xi(config, checkpoint.phase)
            steps_learnt = flow_map(config, checkpoint.phase)
            of_flow_map = steps_learnt is not None
            own = RunSettings.read(folder.path, config, checkpoint.phase, draws, of_flow_map)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{source} is not the config of a generator ({one_line(error)}); restore it."
            ) from error
        load_average(folder, checkpoint, ema, network)
        network.eval().requires_grad_(False).to(device)
        convert_products(network, precision)
        if device.type == "cuda":
            network.memory_format = torch.channels_last
        return cls(
            network,
            space,
            checkpoint.images,
            reads_xi=draws,
            flow_map=steps_learnt,
            precision=precision,
            recorder=recorder,
            run_settings=own,
        )

    def settings(self, steps: int | None = None, **given: Any) -> SamplingConfig:
        """The run's own settings for `steps` evaluations, with the fields `given` in their place.

        steps None: the number that a student was trained for, else the measured number nearest to
        4, else 4. The run's own are those measured for that number (sampling.json), else those of
        the config's `sampler`. If `given` has a field of a sampler (`best_settings.FIELDS`), the
        others are those of the exact sampler.
        """
        return self.run_settings.at(self.run_settings.steps if steps is None else steps, **given)

    def draw(
        self, count: int, config: SamplingConfig, first: int = 0, show_progress: bool = False
    ) -> Tensor:
        """Raw latents [count, C, H, W], float32 on the CPU, of the images from `first` on.

        UserError as of `check`.
        """
        self.check(count, config)
        batches = []
        with Progress(count, "sample", show=show_progress) as progress:
            for start in range(first, first + count, config.batch_size):
                indices = range(start, min(start + config.batch_size, first + count))
                batches.append(self.draw_batch(indices, config).cpu())
                progress.update(len(indices))
        return self.space.restore(torch.cat(batches))

    def check(self, count: int, config: SamplingConfig) -> None:
        """UserError for a number of images, a setting or a label that `draw` refuses."""
        if count < 1 or config.batch_size < 1:
            raise UserError("The number of images and the batch size must be at least 1.")
        self.times(config)
        self._with_label(self.evaluated, config, (0,))

    @cached_property
    def evaluated(self) -> nn.Module:
        """The network in its number format, recorded if it is to be; called as it is."""
        if self.precision is None and self.recorder is None:
            return self.network
        return EvaluatedNetwork(self.network, self.precision, self.recorder)

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
        solver, safety = config.solver, max(config.safety, self.least_safety)
        try:
            check_noise(solver, config.churn, config.noise_scale)
            if self.flow_map:
                return flow_map_times(self.flow_map, config)
            if not self.reads_xi and config.xi_scale != 1:
                raise UserError(
                    "xi_scale needs a network that reads xi, and this run is plain diffusion; "
                    "scale its initial noise instead: noise_scale, --noise-scale."
                )
            steps = steps_within(solver, config.steps)
            times = solver_grid(solver, steps, config.grid, safety, config.power, self.schedule)
            calls = evaluations_of(solver, steps)
            xi_scales(extend_scales(config.xi_scale, calls), calls)
        except ValueError as error:
            raise UserError(str(error)) from None
        return times

    def denoiser(self, config: SamplingConfig, indices: Sequence[int] = ()) -> Denoiser:
        """The network, with a label if one is given; UserError where it has no such label.

        indices: of the images, for the label "every".
        """
        return self._with_label(denoiser_of(self.evaluated, self.reads_xi), config, indices)

    def labelled_flow_map(self, config: SamplingConfig, indices: Sequence[int] = ()) -> FlowMap:
        """The network of a flow map, with a label if one is given, as `denoiser`."""
        network = FlowMapNetwork(self.evaluated)
        if config.label is None and config.guidance == 1:
            return network

        def with_label(x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
            denoiser = self._with_label(network.ending_at(s), config, indices)
            return denoiser(x_t, t, x_t)  # x_t in the place of xi, which is not read

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

    def draw_batch(self, indices: Sequence[int], config: SamplingConfig) -> Tensor:
        """The images of these indices in model space, [B, C, H, W], on the network's device."""
        times = self.times(config)
        generators = [torch_generator(config.seed, "sample", index) for index in indices]
        noise = torch.stack([torch.randn(self.space.shape, generator=g) for g in generators])
        x = config.noise_scale * noise.to(self.network.device)
        if self.flow_map:
            return sample_flow_map(self.labelled_flow_map(config, indices), x, times)
        denoiser = self.denoiser(config, indices)
        return solve_by(config, denoiser, x, times, self.schedule, generators)


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


def is_student(config: Mapping[str, Any]) -> bool:
    """Whether a run with this config was distilled from a teacher; it has no phases."""
    return "teacher" in config


def reads_xi(config: Mapping[str, Any], phase: int) -> bool:
    """Whether the phase `phase` of a run with this config trains draws; a student's does not."""
    phases = config.get("phases", [])
    return bool(phases) and phases[phase]["objective"].get("draws", 0) > 0


def flow_map(config: Mapping[str, Any], phase: int) -> str | None:
    """The steps that the phase `phase` of a run with this config has learnt; None: no flow map."""
    phases = config.get("phases", [])
    return phases[phase]["objective"].get("flow_map") if phases else None
