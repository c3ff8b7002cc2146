"""A training of milliseconds on the engine's loop, in this process or in several others.

The data are a function of each image's position, so that a test can compare the images that two
runs have seen.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from processes import Processes
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim import Optimizer

from latentddm.engine.checkpoint import Checkpoint, newest_checkpoint
from latentddm.engine.distributed import process_batch_size, start_run
from latentddm.engine.ema import EMAConfig
from latentddm.engine.loop import run_loop
from latentddm.engine.metric_accumulator import MetricAccumulator
from latentddm.engine.optimizer import OptimizerConfig
from latentddm.engine.run import RunFolder
from latentddm.engine.seeding import BatchDraws, torch_generator
from latentddm.engine.task import (
    ENGINE_KEYS_THAT_MAY_CHANGE,
    PhaseOfTask,
    SinglePhaseConfig,
    Span,
    whole_span,
)
from latentddm.engine.trainable_module import TrainableModule

BATCH, WIDTH = 8, 6


@dataclass(frozen=True, kw_only=True)
class TinyConfig:
    output: str
    seed: int = 0
    hidden: int = 16
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(
            learning_rate=1e-2, warmup_images=40, decay="cosine", clip_norm=0.5
        )
    )
    loop: SinglePhaseConfig = field(default_factory=lambda: loop_config(40))
    border: int | None = None  # images at which a second phase begins, if one does
    ema: EMAConfig = field(default_factory=lambda: EMAConfig(snapshots=0))


@dataclass(frozen=True)
class Fault:
    """A fault on purpose: a NaN at some images and rank, or slow steps."""

    nan_at: int = -1
    nan_rank: int = 0
    slow: float = 0.0  # seconds a step


class Layer(nn.Module):
    """A unit of sharding."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.linear = nn.Linear(before, after)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).tanh()


class TinyNetwork(nn.Module):
    _no_split_modules = ("Layer",)

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.input, self.output = Layer(WIDTH, hidden), nn.Linear(hidden, WIDTH)
        self.register_buffer("scale", torch.full((), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.output(self.input(x))


class TinyTask:
    def __init__(
        self,
        config: TinyConfig,
        span: Span,
        accelerator: Accelerator,
        fault: Fault,
        before: Checkpoint | None,
    ) -> None:
        self.config, self.accelerator, self.fault = config, accelerator, fault
        torch.manual_seed(config.seed)
        network = TinyNetwork(config.hidden)
        if before is not None:
            before.load_module("ema", network)
        self.trainable = TrainableModule(
            network, config.optimizer, config.loop, span, accelerator, config.ema
        )
        self.averages = self.trainable.averages

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        return {"network": self.trainable.network, **self.averages.modules}

    @property
    def optimizers(self) -> Mapping[str, Optimizer]:
        return {"optimizer": self.trainable.optimizer}

    def batches(self, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        share = process_batch_size(self.config.loop.batch_size, self.accelerator)
        for begin in range(start, sys.maxsize, self.config.loop.batch_size):
            first = begin + self.accelerator.process_index * share
            positions = torch.arange(first, first + share)
            yield positions, torch.stack([_image(int(position)) for position in positions])

    def step(
        self, batch: tuple[Tensor, Tensor], images: int, accumulator: MetricAccumulator
    ) -> None:
        positions, x = batch
        noise = BatchDraws(self.config.seed, "noise", images, len(x), self.accelerator).normal(
            WIDTH
        )
        for part in self.trainable.micro_batches(len(x)):
            error = self.trainable.wrapped(x[part] + noise[part]) - x[part].sin()
            loss = error.square().mean(1)
            if (images, self.accelerator.process_index) == (
                self.fault.nan_at,
                self.fault.nan_rank,
            ):
                loss = loss * math.nan
            self.trainable.backward(loss.mean())
            accumulator.add("loss", loss)
        accumulator.add("gradient_norm", *self.trainable.step(images))
        accumulator.add("position", positions)
        accumulator.add("position_squared", positions.square())
        time.sleep(self.fault.slow)

    def preview(self, path: Path) -> None:
        with torch.no_grad():
            self.averages.first(torch.zeros(1, WIDTH))


def loop_config(steps: int, **changes: object) -> SinglePhaseConfig:
    every = {"log_every": BATCH, "preview_every": 20 * BATCH, "checkpoint_every": 4 * BATCH}
    return SinglePhaseConfig(**{"images": steps * BATCH, "batch_size": BATCH, **every, **changes})  # type: ignore[arg-type]


def train_tiny(config: TinyConfig, fault: Fault | None = None) -> RunFolder:
    run, accelerator = start_run(
        config.output, "tiny", config, may_change=ENGINE_KEYS_THAT_MAY_CHANGE
    )
    whole = whole_span(config.loop)
    border = whole.end if config.border is None else config.border

    def phase(span: Span) -> PhaseOfTask:
        def make(before: Checkpoint | None) -> TinyTask:
            return TinyTask(config, span, accelerator, fault or Fault(), before)

        return PhaseOfTask(span, make)

    phases = [phase(Span(0, border))]
    if border < whole.end:
        phases.append(phase(Span(border, whole.end)))
    run_loop(phases, run, config.loop, accelerator)
    accelerator.end_training()
    return run


def start_tiny(
    count: int, config: TinyConfig, folder: Path, fault: Fault | None = None
) -> Processes:
    """The same training in `count` processes."""
    return Processes(count, lambda: train_tiny(config, fault), folder)


def final_tensors(run: RunFolder) -> dict[str, Tensor]:
    """Every tensor of the newest checkpoint, as file/name."""
    checkpoint = newest_checkpoint(run.checkpoints)
    assert checkpoint is not None
    return {
        f"{path.stem}/{name}": tensor
        for path in checkpoint.path.glob("*.safetensors")
        for name, tensor in load_file(path).items()
    }


def logged(run: RunFolder) -> list[dict[str, float]]:
    """The logged metrics without the speed, which depends on the clock."""
    return [
        {name: value for name, value in line.items() if not name.startswith("images_per_")}
        for line in run.read_metrics()
    ]


def _image(position: int) -> Tensor:
    return torch.randn(WIDTH, generator=torch_generator(7, "data", position))
