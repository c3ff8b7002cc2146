"""Distributional diffusion in the plane: example, test and picture at once.

    python tools/toy2d.py --output toy2d [--target mixture|checkerboard|both] [--seeds 3] [--quick]

Plain diffusion learns E[x_0 | x_t], a point. The distributional diffusion model (DDM) learns
p(x_0 | x_t): it draws x_0 from noise xi, and is trained with the energy score instead of the
squared error. Then a sampler with few steps is as good as one with many. In the plane the exact
posterior is known, so here everything can be checked. Read from top to bottom:

    ToyDenoiser   one small network for both models: (x_t, t, xi) -> x_0
    train         one loop for both models: only the `Objective` differs
    study         what is measured: the squared MMD to the target against the number of network
                  evaluations (NFE), and draws of x_0 at one x_t against the exact posterior

It prints the tables and writes table.json, samples.png, posterior.png and spread.png. The targets
are in toy2d_targets.py, the measures in toy2d_measures.py, the tables in toy2d_tables.py, the
pictures in toy2d_pictures.py. With several seeds, figures are means and their deviations.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from preparation import exit_code
from torch import Tensor, nn
from toy2d_measures import Sizes, posterior_distances, posterior_spread, squared_mmds
from toy2d_pictures import draw_posteriors, draw_samples, draw_spread
from toy2d_tables import deviations, means, table
from toy2d_targets import SCHEDULE, Checkerboard, GaussianMixture, Target

from latentddm.diffusion.process import corrupt, to_x0
from latentddm.engine.atomic_io import write_json
from latentddm.engine.ema import EMA
from latentddm.engine.errors import UserError
from latentddm.engine.optimizer import OptimizerConfig, learning_rate, make_optimizer
from latentddm.engine.progress import Progress
from latentddm.engine.seeding import derive_seed, torch_generator
from latentddm.training.objective import Objective, draw_targets, objective_terms

TARGETS: dict[str, Target] = {"mixture": GaussianMixture(), "checkerboard": Checkerboard()}

# NFE: (plain diffusion, DDM), the squared MMD in the authors' replies to their reviewers. They do
# not tell the scale of their board. On [-1, 1]^2 an exact mean denoiser has 1.1e-2, 2.5e-3 and
# 2.2e-4 at NFE 5, 10 and 50, and the floor is 2.0e-4: the nearest of the usual scales.
PUBLISHED = {
    "checkerboard": {
        5: (7.00e-3, 1.57e-4),
        10: (2.10e-3, 1.96e-4),
        50: (2.70e-4, 1.55e-4),
        100: (1.96e-4, 2.00e-4),
        1000: (1.71e-4, 1.83e-4),
    }
}

# Only the score differs. The DDM takes m = 8 draws of x_0 for each point, and beta 1/2: the smaller
# beta is, the more the score is of what is near. Both models see 8 of the batch's x_0 that may be
# behind an x_t. The times lean to the data, where the board has its edges, and still reach pure
# noise, where one-step sampling starts.
SHARED: dict[str, Any] = {
    "targets": 8,
    "time_sampling": "logit_normal",
    "time_mean": -0.5,
    "time_std": 1.4,
    "weighting_bias": None,
}
MODELS = {
    "diffusion": Objective.plain_diffusion(**SHARED),
    "DDM": Objective(draws=8, beta=0.5, lam=1.0, position_share=0.0, **SHARED),
}


@dataclass(frozen=True)
class Training:
    """How long to train each model, counted in points seen."""

    points: int = 1_500_000
    batch: int = 512
    learning_rate: float = 1e-2  # of AdamW, after a warm-up, with cosine decay
    warmup_points: int = 50_000
    ema_std: float = 0.05  # relative width of the average of the weights


QUICK = (
    Training(points=250_000, warmup_points=25_000),
    Sizes(evaluations=(1, 2, 5, 10, 50, 100), samples=1024, repetitions=1, conditions=32, draws=64),
)


class ToyDenoiser(nn.Module):
    """x_0 = G(t, x_t, xi), a residual network; as plain diffusion it has no input for xi.

    It predicts v = eps - x_0. What depends on x_t and t alone is computed once for the m draws.
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
        """One x_0 for each x_t, [B, 2]: the denoiser that `latentddm.sample` calls."""
        return self(x_t, t, xi[:, None])[:, 0]

    def _features(self, x_t: Tensor, t: Tensor) -> Tensor:
        """x_t at unit variance, t, and waves of both: edges are hard to learn without them.

        The waves of x_t are the mean of those of x_0, were the data Gaussian: of its posterior
        mean, damped by what is unknown of x_0. At little noise they show where x_0 is on the
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
    target: Target, objective: Objective, training: Training, seed: int, label: str
) -> tuple[ToyDenoiser, dict[str, float]]:
    """Algorithm 1 of the paper; returns the averaged network and the time it took."""
    torch.manual_seed(derive_seed(seed, "weights"))
    network = ToyDenoiser(target.scale, draws_from_noise=objective.draws > 1)
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
            t = objective.times(torch.randn(batch, generator=random))
            x_t = corrupt(x0, t, torch.randn(x0.shape, generator=random), SCHEDULE)
            xi = torch.randn(batch, objective.draws, 2, generator=random)
            draws = network(x_t, t, xi)
            uniform = torch.rand(batch, objective.targets, generator=random)
            targets = draw_targets(x_t, t, x0, uniform, SCHEDULE)
            objective_terms(draws, targets, t, objective, SCHEDULE).loss.mean().backward()
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config, seen - batch, training.points)
            optimizer.step()
            optimizer.zero_grad()
            average.update(seen, batch)
            progress.update(batch)
    took = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
    network.load_state_dict(average.module.state_dict())
    return network.eval(), took


@dataclass(frozen=True)
class Study:
    """What was trained and measured for one target."""

    networks: dict[str, ToyDenoiser]
    points: dict[tuple[str, int], Tensor]  # samples by (model, NFE)
    report: dict[str, Any]  # for table.json


def study(target: Target, training: Training, sizes: Sizes, seed: int) -> Study:
    """Train both models on a target and measure them."""
    networks, took = {}, {}
    for model, objective in MODELS.items():
        label = f"{target.name}, {model}"
        networks[model], took[model] = train(target, objective, training, seed, label)
    ddm = networks["DDM"].denoise
    rows, points = squared_mmds(target, {m: n.denoise for m, n in networks.items()}, sizes, seed)
    for row in rows:
        published = PUBLISHED.get(target.name, {}).get(int(row["nfe"]))
        if published and row["bandwidth"] == 1.0:
            row |= {"published diffusion": published[0], "published DDM": published[1]}
    report = {
        "squared_mmd": rows,
        "posterior": posterior_distances(target, ddm, sizes, seed),
        "spread": posterior_spread(target, ddm, sizes, seed),
        "training": took,
    }
    return Study(networks, points, report)


def _study_all(
    names: Sequence[str], seeds: Sequence[int], training: Training, sizes: Sizes
) -> dict[str, list[Study]]:
    """The studies of each target, by seed, in processes of one thread, one for each core.

    A second thread of a process costs more than it gives here.
    """
    context = multiprocessing.get_context("spawn")
    workers = min(len(names) * len(seeds), os.cpu_count() or 1)
    with ProcessPoolExecutor(
        workers, context, initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        work = {
            name: [pool.submit(study, TARGETS[name], training, sizes, seed) for seed in seeds]
            for name in names
        }
        return {name: [future.result() for future in futures] for name, futures in work.items()}


def run(options: argparse.Namespace) -> None:
    """Study the targets, print the tables, write the files."""
    training, sizes = QUICK if options.quick else (Training(), Sizes())
    names = list(TARGETS) if options.target == "both" else [options.target]
    if options.points is not None:
        if options.points < training.batch:
            raise UserError(f"--points must be at least one batch, {training.batch}.")
        training = replace(training, points=options.points)
    if options.seeds < 1:
        raise UserError("--seeds must be at least 1.")
    seeds, output = range(options.seed, options.seed + options.seeds), options.output
    by_seed = _study_all(names, seeds, training, sizes)
    reports, spreads = {}, {}
    for name, done in by_seed.items():
        each = [one.report for one in done]
        reports[name], spreads[name] = means(each), deviations(each)
        print(table(name, reports[name], spreads[name]), flush=True)
    protocol = {
        "seeds": list(seeds),
        "estimator": "squared MMD, RBF, biased, mean over repetitions; DDIM, uniform grid",
        "training": asdict(training),
        "sizes": asdict(sizes),
        "models": {model: asdict(objective) for model, objective in MODELS.items()},
        "targets": {name: repr(TARGETS[name]) for name in names},
    }
    written = {"protocol": protocol, "targets": reports, "deviations": spreads}
    write_json(output / "table.json", written)
    studies = {name: done[0] for name, done in by_seed.items()}  # the pictures show the first seed
    targets = {name: TARGETS[name] for name in names}
    points = {name: done.points for name, done in studies.items()}
    denoisers = {
        name: {model: network.denoise for model, network in done.networks.items()}
        for name, done in studies.items()
    }
    draw_samples(output / "samples.png", points, targets, options.seed)
    draw_posteriors(output / "posterior.png", denoisers, targets, options.seed)
    draw_spread(output / "spread.png", {name: report["spread"] for name, report in reports.items()})
    print(f"Wrote table.json, samples.png, posterior.png and spread.png to {output}.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tool; 0 done, 1 the work failed, 2 the request was wrong."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--target", choices=[*TARGETS, "both"], default="both")
    options.add_argument("--output", type=Path, default=Path("toy2d"), help="default ./toy2d")
    options.add_argument("--points", type=int, help="training points seen by each model")
    options.add_argument("--seed", type=int, default=0, help="the first (default 0)")
    options.add_argument("--seeds", type=int, default=1, help="how many (default 1)")
    options.add_argument("--quick", action="store_true", help="a smoke run of seconds")
    parsed = options.parse_args(arguments)
    return exit_code(lambda: run(parsed))


if __name__ == "__main__":
    raise SystemExit(main())
