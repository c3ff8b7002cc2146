"""The toy's models and the loop that trains them: only the objective and the draws differ.

Plain diffusion and the DDM by a score of draws; the rivals by the package's own objectives.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from toy2d_targets import SCHEDULE, Target

from latentddm.diffusion.process import corrupt, draw_targets, to_x0
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


class ToyDenoiser(nn.Module):
    """x_0 = G(t, x_t, xi), a residual network; as plain diffusion it has no input for xi.

    It predicts v = eps - x_0. The features of x_t and t are computed once for the m draws. For a
    flow map it reads the length of a step as well.
    """

    waves = (1, 2, 4)  # of x_0, in multiples of pi / 2 over the data's scale
    n_features = 2 + 1 + 2 * (2 * len(waves) + 4)  # see _features

    def __init__(
        self,
        scale: float,
        draws_from_noise: bool,
        width: int = 128,
        depth: int = 6,
        flow_map: str | None = None,
    ):
        super().__init__()
        self.flow_map = flow_map  # the steps to be learnt, "free" or "dyadic"
        self.scale = scale
        self.condition = nn.Linear(self.n_features, width)
        self.noise = nn.Linear(2, width, bias=False) if draws_from_noise else None
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(depth - 1))
        self.output = nn.Linear(width, 2)
        self.step = nn.Linear(9, width, bias=False) if flow_map else None

    def forward(
        self, x_t: Tensor, t: Tensor, xi: Tensor | None = None, s: Tensor | None = None
    ) -> Tensor:
        """Draws of x_0, [B, m, 2]. x_t: [B, 2]; t, s: [B]; xi: [B, m, 2], or None for one draw."""
        hidden = self.condition(self._features(x_t, t))[:, None]  # [B, 1, width]
        if self.step is not None:
            length = (torch.zeros_like(t) if s is None else t - s)[:, None]
            hidden = hidden + self.step(torch.cat([length, *_waves(length)], dim=1))[:, None]
        if self.noise is not None:
            hidden = hidden + self.noise(xi)  # [B, m, width]
        hidden = hidden.relu()
        for layer in self.hidden:
            hidden = hidden + layer(hidden).relu()
        return to_x0(self.output(hidden), x_t[:, None], t, "v", SCHEDULE)

    def denoise(self, x_t: Tensor, t: Tensor, xi: Tensor) -> Tensor:
        """One x_0 for each x_t, [B, 2]: a denoiser for `latentddm.sample`."""
        return self(x_t, t, xi[:, None])[:, 0]

    def step_to(self, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """The flow map g(x_t, t, s) of `latentddm.diffusion.flow_maps`, [B, 2]."""
        return self(x_t, t, None, s)[:, 0]

    def _features(self, x_t: Tensor, t: Tensor) -> Tensor:
        """x_t at unit variance, t, and waves of both: edges are hard to learn without them.

        The waves are the posterior means of waves of x_0 for Gaussian data: waves of the posterior
        mean, damped by the posterior variance. At little noise they show the place of x_0 on the
        board, at much noise nothing (integrated positional encoding, arXiv 2103.13415).
        """
        alpha, sigma, t = SCHEDULE.alpha(t)[:, None], SCHEDULE.sigma(t)[:, None], t[:, None]
        variance = alpha**2 * self.scale**2 + sigma**2  # of x_t
        mean = alpha * self.scale**2 / variance * x_t
        unknown = sigma**2 * self.scale**2 / variance
        of_x0 = [
            torch.exp(-(k**2) * unknown / 2) * wave(k * mean)
            for k in (math.pi / 2 / self.scale * n for n in self.waves)
            for wave in (torch.sin, torch.cos)
        ]
        return torch.cat([x_t / variance.sqrt(), t, *_waves(t), *of_x0], dim=1)


def _waves(t: Tensor) -> tuple[Tensor, Tensor]:
    """Sines and cosines of a time [B, 1], [B, 4] each."""
    angles = math.pi * torch.cat([k * t for k in (1, 2, 3, 4)], dim=1)
    return angles.sin(), angles.cos()


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

    def train(
        self, x_t: Tensor, t: Tensor, xi: Tensor | None = None, s: Tensor | None = None
    ) -> Tensor:
        return self.network(x_t, t, xi, s)[:, 0]

    def current(self, x_t: Tensor, t: Tensor, s: Tensor | None = None) -> Tensor:
        return self.network(x_t, t, None, s)[:, 0]

    def average(self, x_t: Tensor, t: Tensor, s: Tensor | None = None) -> Tensor:
        return self.averaged(x_t, t, None, s)[:, 0]

    def place(self, x_t: Tensor, t: Tensor, drawn: Tensor, targets: Tensor) -> None:
        """Nothing learns beside the network."""

    def on(self, rows: Tensor) -> ToyEvaluator:
        return self
