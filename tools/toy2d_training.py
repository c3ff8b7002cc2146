"""The toy's models and the loop that trains them: only the objective and the draws differ.

Plain diffusion and the DDM by a score of draws; the rivals by the package's own objectives.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from toy2d_network import ToyDenoiser
from toy2d_targets import SCHEDULE, Target

from latentddm.diffusion.process import corrupt, draw_targets
from latentddm.engine.atomic_io import atomic_path
from latentddm.engine.ema import EMA
from latentddm.engine.errors import UserError
from latentddm.engine.optimizer import OptimizerConfig, learning_rate, make_optimizer
from latentddm.engine.progress import Progress
from latentddm.engine.seeding import derive_seed, torch_generator
from latentddm.scores import EnergyConfig, ScoreConfig
from latentddm.training.rivals import (
    FlowMapObjective,
    InductiveObjective,
    MeanFlowObjective,
    ShortcutObjective,
)


@dataclass(frozen=True)
class Model:
    """The draws of x_0 for each x_t, and their score."""

    draws: int
    score: ScoreConfig


# The times of training, as in `Training`.
_TIMES: Mapping[str, Any] = {"time_mean": -0.5, "time_std": 1.4}

# beta 2 without interaction is the squared error: its minimiser is the mean. The smaller beta is,
# the more the score weighs small distances.
MODELS: dict[str, Model | FlowMapObjective] = {
    "diffusion": Model(draws=1, score=EnergyConfig(beta=2.0, lam=0.0, views={"whole": 1.0})),
    "DDM": Model(draws=8, score=EnergyConfig(beta=0.5, lam=1.0, views={"whole": 1.0})),
    "shortcut": ShortcutObjective(time_sampling="logit_normal", **_TIMES),
    # In the plane a sample's error is mostly noise, by which no sample may be weighted.
    "mean flow": MeanFlowObjective(adaptive_power=0.0, **_TIMES),
    "inductive": InductiveObjective(),  # its weight is made for uniform times
}


@dataclass(frozen=True)
class Training:
    """The length of a training, counted in points seen, and all that both models share."""

    points: int = 1_500_000
    batch: int = 512
    learning_rate: float = 1e-2  # of AdamW, after a warm-up, with cosine decay
    warmup_points: int = 50_000
    ema_std: float = 0.05  # relative width of the average of the weights
    targets: int = 8  # x_0 of the batch that may have led to an x_t
    # Times are logit-normal. They lean to the data, where the board has its edges, and still reach
    # pure noise, where one-step sampling starts.
    time_mean: float = -0.5
    time_std: float = 1.4

    def times(self, noise: Tensor) -> Tensor:
        """Times in (0, 1) from standard normal noise [B]."""
        return torch.sigmoid(self.time_mean + self.time_std * noise).clamp(1e-4, 1 - 1e-4)

    def lengthened(self, factor: float) -> Training:
        """The same on so many times the points, in whole batches."""
        return replace(self, points=round(factor * self.points / self.batch) * self.batch)


def train(
    target: Target, model: Model | FlowMapObjective, training: Training, seed: int, label: str
) -> tuple[ToyDenoiser, dict[str, float]]:
    """Algorithm 1 of the paper, or a rival; returns the averaged network and the seconds."""
    torch.manual_seed(derive_seed(seed, "weights"))
    network = make_network(target, model)
    average, batch = EMA(network, training.ema_std), training.batch
    config = OptimizerConfig(
        learning_rate=training.learning_rate, warmup_images=training.warmup_points, decay="cosine"
    )
    optimizer = make_optimizer(network, config)
    random = torch_generator(seed, "training", target.name)
    wall, cpu = time.perf_counter(), time.process_time()
    with Progress(training.points, label, unit="points") as progress:
        for seen in range(batch, training.points + 1, batch):
            x0 = target.sample(batch, random).float()
            if isinstance(model, FlowMapObjective):
                numbers = model.numbers(ToyNumbers(batch, random), x0)
                evaluator = ToyEvaluator(network, average.module)
                loss = model.evaluate(evaluator, x0, numbers, x0, SCHEDULE).loss
            else:
                loss = score_of(network, x0, model, training, random)
            loss.mean().backward()
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config, seen - batch, training.points)
            optimizer.step()
            optimizer.zero_grad()
            average.update(seen, batch)
            progress.update(batch)
    took = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
    network.load_state_dict(average.module.state_dict())
    return network.eval(), took


def train_once(
    folder: Path, target: Target, name: str, training: Training, seed: int
) -> tuple[ToyDenoiser, dict[str, float]]:
    """The result of `train` for MODELS[name], kept in `folder`: a second call reads it.

    UserError if the one in the folder is of another training.
    """
    model = MODELS[name]
    path = folder / f"{target.name}-{name}-{seed}.safetensors".replace(" ", "-")
    made_by = repr((target, model, training))
    if path.is_file():
        with safe_open(path, "pt") as stored:
            about = stored.metadata()
            weights = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
        if about["made_by"] != made_by:
            raise UserError(f"{path} is of another training; choose another --output.")
        network = make_network(target, model)
        network.load_state_dict(weights)
        return network.eval(), json.loads(about["took"])
    network, took = train(target, model, training, seed, f"{target.name}, {name}")
    with atomic_path(path) as temporary:
        about = {"made_by": made_by, "took": json.dumps(took)}
        save_file(network.state_dict(), temporary, metadata=about)
    return network, took


def make_network(target: Target, model: Model | FlowMapObjective) -> ToyDenoiser:
    """The network of a model, not yet trained."""
    return ToyDenoiser(
        target.scale,
        draws_from_noise=isinstance(model, Model) and model.draws > 1,
        flow_map=flow_map_of(model),
    )


def flow_map_of(model: Model | FlowMapObjective) -> str | None:
    """The steps that a rival's flow map learns; None for a denoiser."""
    return model.flow_map if isinstance(model, FlowMapObjective) else None


def score_of(
    network: ToyDenoiser, x0: Tensor, model: Model, training: Training, random: torch.Generator
) -> Tensor:
    """The score of the draws against the data, [B]."""
    batch, score = len(x0), model.score.make()
    t = training.times(torch.randn(batch, generator=random))
    x_t = corrupt(x0, t, torch.randn(x0.shape, generator=random), SCHEDULE)
    draws = network(x_t, t, torch.randn(batch, model.draws, 2, generator=random))
    uniform = torch.rand(batch, training.targets, generator=random)
    targets = draw_targets(x_t, t, x0, uniform, SCHEDULE)
    return score(draws, targets, t).score(score.lam_at(t))


@dataclass(frozen=True)
class ToyNumbers:
    """`latentddm.training.protocols.RandomNumbers` of one generator."""

    batch: int
    generator: torch.Generator

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(self.batch, *shape, generator=self.generator)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(self.batch, *shape, generator=self.generator)


@dataclass(frozen=True)
class ToyEvaluator:
    """`latentddm.training.protocols.Evaluator` of the toy's network and its average."""

    network: ToyDenoiser
    averaged: nn.Module

    def with_gradient(
        self, x_t: Tensor, t: Tensor, xi: Tensor | None = None, s: Tensor | None = None
    ) -> Tensor:
        return self.network(x_t, t, xi, s)[:, 0]

    def current(self, x_t: Tensor, t: Tensor, s: Tensor | None = None) -> Tensor:
        return self.network(x_t, t, None, s)[:, 0]

    def average(self, x_t: Tensor, t: Tensor, s: Tensor | None = None) -> Tensor:
        return self.averaged(x_t, t, None, s)[:, 0]

    def on(self, rows: Tensor) -> ToyEvaluator:
        return self
