"""The toy's two models and the loop that trains them: only the score and the draws differ."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from toy2d_targets import SCHEDULE, Target

from latentddm.diffusion.process import corrupt, draw_targets, to_x0
from latentddm.engine.ema import EMA
from latentddm.engine.optimizer import OptimizerConfig, learning_rate, make_optimizer
from latentddm.engine.progress import Progress
from latentddm.engine.seeding import derive_seed, torch_generator
from latentddm.scores import EnergyConfig, ScoreConfig


@dataclass(frozen=True)
class Model:
    """The draws of x_0 for each x_t, and their score."""

    draws: int
    score: ScoreConfig


# beta 2 without interaction is the squared error: its minimiser is the mean. The smaller beta is,
# the more the score weighs small distances.
MODELS = {
    "diffusion": Model(draws=1, score=EnergyConfig(beta=2.0, lam=0.0, views={"whole": 1.0})),
    "DDM": Model(draws=8, score=EnergyConfig(beta=0.5, lam=1.0, views={"whole": 1.0})),
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

    It predicts v = eps - x_0. The features of x_t and t are computed once for the m draws.
    """

    waves = (1, 2, 4)  # of x_0, in multiples of pi / 2 over the data's scale
    n_features = 2 + 1 + 2 * (2 * len(waves) + 4)  # see _features

    def __init__(self, scale: float, draws_from_noise: bool, width: int = 128, depth: int = 6):
        super().__init__()
        self.scale = scale
        self.condition = nn.Linear(self.n_features, width)
        self.noise = nn.Linear(2, width, bias=False) if draws_from_noise else None
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(depth - 1))
        self.output = nn.Linear(width, 2)

    def forward(self, x_t: Tensor, t: Tensor, xi: Tensor) -> Tensor:
        """Draws of x_0, [B, m, 2]. x_t: [B, 2]; t: [B]; xi: [B, m, 2]."""
        hidden = self.condition(self._features(x_t, t))[:, None]  # [B, 1, width]
        if self.noise is not None:
            hidden = hidden + self.noise(xi)  # [B, m, width]
        hidden = hidden.relu()
        for layer in self.hidden:
            hidden = hidden + layer(hidden).relu()
        return to_x0(self.output(hidden), x_t[:, None], t, "v", SCHEDULE)

    def denoise(self, x_t: Tensor, t: Tensor, xi: Tensor) -> Tensor:
        """One x_0 for each x_t, [B, 2]: a denoiser for `latentddm.sample`."""
        return self(x_t, t, xi[:, None])[:, 0]

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
        angles = math.pi * torch.cat([k * t for k in (1, 2, 3, 4)], dim=1)
        return torch.cat([x_t / variance.sqrt(), t, angles.sin(), angles.cos(), *of_x0], dim=1)


def train(
    target: Target, model: Model, training: Training, seed: int, label: str
) -> tuple[ToyDenoiser, dict[str, float]]:
    """Algorithm 1 of the paper; returns the averaged network and the seconds it took."""
    torch.manual_seed(derive_seed(seed, "weights"))
    network = ToyDenoiser(target.scale, draws_from_noise=model.draws > 1)
    average, batch, score = EMA(network, training.ema_std), training.batch, model.score.make()
    config = OptimizerConfig(
        learning_rate=training.learning_rate, warmup_images=training.warmup_points, decay="cosine"
    )
    optimizer = make_optimizer(network, config)
    random = torch_generator(seed, "training", target.name)
    wall, cpu = time.perf_counter(), time.process_time()
    with Progress(training.points, label, unit="points") as progress:
        for seen in range(batch, training.points + 1, batch):
            x0 = target.sample(batch, random).float()
            t = training.times(torch.randn(batch, generator=random))
            x_t = corrupt(x0, t, torch.randn(x0.shape, generator=random), SCHEDULE)
            xi = torch.randn(batch, model.draws, 2, generator=random)
            draws = network(x_t, t, xi)
            uniform = torch.rand(batch, training.targets, generator=random)
            targets = draw_targets(x_t, t, x0, uniform, SCHEDULE)
            score(draws, targets, t).score(score.lam_at(t)).mean().backward()
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config, seen - batch, training.points)
            optimizer.step()
            optimizer.zero_grad()
            average.update(seen, batch)
            progress.update(batch)
    took = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
    network.load_state_dict(average.module.state_dict())
    return network.eval(), took
