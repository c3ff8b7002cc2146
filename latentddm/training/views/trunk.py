"""Features of a frozen network of plain diffusion of the same latents."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from latentddm.diffusion.process import corrupt
from latentddm.diffusion.schedules import Schedule
from latentddm.engine.errors import UserError
from latentddm.engine.run import RunFolder
from latentddm.engine.seeding import torch_generator
from latentddm.inference.generator import RUN_KIND, Generator, checkpoint_at, is_student
from latentddm.networks.network import NetworkModel
from latentddm.scores.views import Differences, View, ViewConfig, ViewInputs
from latentddm.training.views.inputs import TrainingInputs, of_training


@dataclass(frozen=True, kw_only=True)
class TrunkConfig(ViewConfig):
    """The activations behind the middle of a network of plain diffusion, which stays as it is.

    The network sees alpha_f x, or with `noise` alpha_f x + sigma_f eps with one eps for all
    samples of a training, at each level f of `times`. The activations of each level are scaled so
    that their variance over latents of the store is 1, as that of the latents.
    """

    kind: Literal["trunk"] = "trunk"
    run: str = ""  # the folder of a run whose last phase is plain diffusion
    images: int | None = None  # which checkpoint; None: the newest
    times: tuple[float, ...] = (0.15,)
    noise: bool = False
    spots: Literal["position", "whole"] = "position"  # of the activations, at each level
    samples: int = 256  # of the store, from which the scales are computed

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.run:
            raise ValueError("run of the view 'trunk' must be a folder of a run of plain diffusion")
        if not self.times or not all(0 < time < 1 for time in self.times):
            raise ValueError(f"times must lie in (0, 1), not {list(self.times)}")
        if self.samples < 2:
            raise ValueError(f"samples must be at least 2, not {self.samples}")

    def resolved(self) -> TrunkConfig:
        """See `ViewConfig`: with the checkpoint, as the run may be trained on."""
        return replace(
            self, images=checkpoint_at(RunFolder.open(self.run, RUN_KIND), self.images).images
        )

    def make(self, inputs: ViewInputs | None = None) -> View:
        """See `ViewConfig`; UserError for a run that does not fit."""
        training = of_training(inputs, self.kind)
        return Trunk(self, load_trunk(self.run, self.images, training), training)


class Trunk(View):
    """See `TrunkConfig`; network: in evaluation mode, without gradients for its weights."""

    def __init__(self, config: TrunkConfig, network: NetworkModel, inputs: TrainingInputs) -> None:
        self.config, self.network = config, network
        self._accelerator: Accelerator = inputs.accelerator
        self._schedule: Schedule = network.schedule
        self._middle = middle_block(network)
        sample = inputs.latents(config.samples).to(inputs.accelerator.device)
        eps = torch.randn(sample.shape[1:], generator=torch_generator(inputs.seed, "trunk"))
        self._noise = config.noise * eps.to(sample)
        self._scales = [1.0] * len(config.times)
        with torch.no_grad():
            levels = [self._level(sample, index) for index in range(len(config.times))]
        self._scales = [float(level.var(0).mean().rsqrt()) for level in levels]

    def features(self, x: Tensor, t: Tensor) -> Tensor:
        """[B, n, F, levels, P]."""
        rows = x.flatten(0, 1)
        levels = [self._level(rows, index) for index in range(len(self._scales))]
        return torch.stack(levels, dim=2).unflatten(0, x.shape[:2])

    def mean_squares(self, differences: Differences) -> Tensor:
        """[B, n, levels P], or [B, n, levels] of the spots "whole"."""
        squares = differences.mean_squares_over_channels
        if self.config.spots == "position":
            return squares
        return squares.unflatten(2, (len(self._scales), -1)).mean(3)

    def _level(self, rows: Tensor, index: int) -> Tensor:
        """Scaled activations [R, F, P] of samples [R, C, H, W] at one level of `times`."""
        time = torch.full((len(rows),), self.config.times[index], device=rows.device)
        x_f = corrupt(rows, time, self._noise, self._schedule)
        with self._accelerator.autocast():
            activations = run_until(self._middle, self.network, x_f, time)
        return self._scales[index] * activations.to(rows.dtype)


def load_trunk(run: str, images: int | None, inputs: TrainingInputs) -> NetworkModel:
    """The averaged weights of a run; UserError unless it is plain diffusion of the same latents."""
    generator = Generator.load(run, device=inputs.accelerator.device, images=images)
    distilled = is_student(RunFolder.open(run, RUN_KIND).read_config())
    if generator.reads_xi or generator.flow_map or distilled:
        raise UserError(
            f"run of the view 'trunk' is {run}, whose last phase is not plain diffusion; give one "
            "that ends in it, or the images of a checkpoint of its plain phase."
        )
    named = f"run of the view 'trunk' is {run}, which"
    generator.space.require_store(inputs.store, named, "give a run of that store")
    return generator.network


def middle_block(network: Any) -> nn.Module:
    """The last block of a UNet's middle, or the one half-way through the blocks of a DiT."""
    parts = [*network.trunk, *network.draw_parts]
    if network.config["kind"] == "unet":
        # Down, each level is a convolution and its blocks; then come the two of the middle.
        down = len(network.config["multipliers"]) * (1 + network.config["blocks"])
        return parts[down + 1]
    return parts[(len(parts) - 1) // 2]


class _Reached(Exception):
    """The block whose output is read has run."""


def run_until(block: nn.Module, network: nn.Module, x_t: Tensor, t: Tensor) -> Tensor:
    """The output of `block`, [B, F, P], in an evaluation of the network without xi.

    The rest of the network does not run. Of a map P is height times width, of tokens their number.
    """
    found: list[Tensor] = []

    def read(module: nn.Module, inputs: Any, output: Any) -> None:
        found.append(output.x.flatten(2) if hasattr(output, "skips") else output.transpose(1, 2))
        raise _Reached

    handle = block.register_forward_hook(read)
    try:
        network(x_t, t, None)
    except _Reached:
        return found[0]
    finally:
        handle.remove()
    raise RuntimeError("the block is no part of the network")
