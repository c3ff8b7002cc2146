"""Distances of a denoiser's samples and posterior draws from the exact ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from toy2d_targets import SCHEDULE, Target

from latentddm.diffusion.flow_maps import FlowMap, dyadic_times, sample_flow_map
from latentddm.diffusion.process import corrupt
from latentddm.diffusion.sampling import Denoiser, sample, time_grid
from latentddm.engine.seeding import torch_generator
from latentddm.evaluation.distances import energy_distance
from latentddm.evaluation.pairs import row_means, row_means_without_self, squared_distances

TIMES = (0.2, 0.5, 0.8)  # at which posteriors are compared
BANDWIDTHS = (1.0, 0.25)  # of the MMD: the paper's, and one that sees the squares' edges
FLOOR = "target"  # the column of the target against itself


@dataclass(frozen=True)
class Sizes:
    """Numbers of evaluations and of samples."""

    evaluations: tuple[int, ...] = (1, 2, 5, 10, 50, 100, 1000)  # of the network (NFE)
    samples: int = 4096  # points of each set in one MMD
    repetitions: int = 4  # MMDs that are averaged
    conditions: int = 256  # values of x_t for each posterior figure
    draws: int = 256  # from each posterior


@dataclass(frozen=True)
class LearntFlowMap:
    """A flow map and the steps it has learnt, "free" or "dyadic"."""

    step: FlowMap
    learnt: str


def draw(
    model: Denoiser | LearntFlowMap, noise: Tensor, steps: int, generator: torch.Generator
) -> Tensor:
    """Points drawn from noise [N, 2] in `steps` evaluations: DDIM, or the steps of a flow map."""
    if isinstance(model, LearntFlowMap):
        times = dyadic_times(steps) if model.learnt == "dyadic" else time_grid(steps)
        return sample_flow_map(model.step, noise, times)
    return sample(model, noise, time_grid(steps), generator=generator)


def squared_mmds(
    target: Target, denoisers: Mapping[str, Denoiser | LearntFlowMap], sizes: Sizes, seed: int
) -> tuple[list[dict[str, float]], dict[tuple[str, int], Tensor]]:
    """The rows of the table, one for each bandwidth and NFE, and the points to draw.

    Squared MMD, RBF kernel, biased (the V-statistic), of samples against fresh points of the
    target. The sampler is DDIM (churn 0) on a uniform grid for every denoiser. Every cell uses the
    same noise and the same points, so that differences within the table are not chance. The column
    FLOOR is the target against itself: smaller differences are noise.
    """
    totals: dict[tuple[float, int, str], float] = {}
    points: dict[tuple[str, int], Tensor] = {}
    for repetition in range(sizes.repetitions):
        random = torch_generator(seed, "samples", target.name, repetition)
        truth, other_truth = (target.sample(sizes.samples, random) for _ in range(2))
        noise = torch.randn(sizes.samples, 2, generator=random)
        distances = {h: DistanceTo(truth, h) for h in BANDWIDTHS}
        floors = {h: distance(other_truth) for h, distance in distances.items()}
        for steps in sizes.evaluations:
            for h, floor in floors.items():
                key = (h, steps, FLOOR)
                totals[key] = totals.get(key, 0.0) + floor / sizes.repetitions
            for name, denoiser in denoisers.items():
                fresh = torch_generator(seed, "xi", target.name, repetition, steps)
                drawn = draw(denoiser, noise, steps, fresh)
                points[name, steps] = drawn
                for h, distance in distances.items():
                    key = (h, steps, name)
                    totals[key] = totals.get(key, 0.0) + distance(drawn) / sizes.repetitions
    rows = [
        {"bandwidth": h, "nfe": steps}
        | {name: totals[h, steps, name] for name in (*denoisers, FLOOR)}
        for h in BANDWIDTHS
        for steps in sizes.evaluations
    ]
    return rows, points


class DistanceTo:
    """Squared MMD to one set of points, RBF kernel, biased: `mmd2` with the constant term kept."""

    def __init__(self, truth: Tensor, bandwidth: float) -> None:
        self.truth, self.bandwidth = truth.double(), bandwidth
        self.within = self._mean_within(self.truth)

    def __call__(self, points: Tensor) -> float:
        """E k(X, X') + E k(Y, Y') - 2 E k(X, Y)."""
        points = points.double()
        across = float(row_means(points, self.truth, self._kernel).mean())
        return self._mean_within(points) + self.within - 2 * across

    def _mean_within(self, points: Tensor) -> float:
        """Over all pairs, a point with itself, whose kernel is 1, among them."""
        n = len(points)
        others = float(row_means_without_self(points, self._kernel).mean())
        return (1 + (n - 1) * others) / n

    def _kernel(self, x: Tensor, y: Tensor) -> Tensor:
        return squared_distances(x, y).div_(-2 * self.bandwidth**2).exp_()


def posterior_draws(
    denoiser: Denoiser, x_t: Tensor, t: Tensor, draws: int, generator: torch.Generator
) -> Tensor:
    """Draws of x_0 for each x_t, [B, draws, 2], float64. x_t: [B, 2]; t: [B]."""
    x_t, t = (value.repeat_interleave(draws, dim=0).float() for value in (x_t, t))
    xi = torch.randn(x_t.shape, generator=generator)
    with torch.no_grad():
        return denoiser(x_t, t, xi).double().unflatten(0, (-1, draws))


def posterior_distances(
    target: Target, denoiser: Denoiser, sizes: Sizes, seed: int
) -> list[dict[str, float]]:
    """Energy distance of the draws to the exact posterior, averaged over x_t, at each of TIMES.

    Beside it that of the exact posterior mean, all mass in one point: of perfect plain diffusion.
    Both are unbiased, so that a perfect model has zero on average.
    """
    rows = []
    for time in TIMES:
        random = torch_generator(seed, "posterior", target.name, str(time))
        x_t, t = noised(target, time, sizes.conditions, random)
        exact = target.posterior(x_t, t, sizes.draws, random)
        drawn = posterior_draws(denoiser, x_t, t, sizes.draws, random)
        mean = exact.mean(1, keepdim=True).expand_as(exact)
        of_draws, of_mean = (
            sum(map(energy_distance, each, exact)) / sizes.conditions for each in (drawn, mean)
        )
        rows.append({"t": time, "DDM": of_draws, "mean": of_mean, "ratio": of_draws / of_mean})
    return rows


def posterior_spread(
    target: Target, denoiser: Denoiser, sizes: Sizes, seed: int
) -> list[dict[str, float]]:
    """Standard deviation of x_0 given x_t (root mean square over x_t and coordinates) against t."""
    rows = []
    for time in [0.02, *(step / 20 for step in range(1, 21))]:
        random = torch_generator(seed, "spread", target.name, str(time))
        x_t, t = noised(target, time, sizes.conditions, random)
        exact = target.posterior(x_t, t, sizes.draws, random)
        drawn = posterior_draws(denoiser, x_t, t, sizes.draws, random)
        exact_std, std = (float(each.var(dim=1).mean().sqrt()) for each in (exact, drawn))
        rows.append({"t": time, "exact": exact_std, "DDM": std})
    return rows


def noised(
    target: Target, time: float, count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """x_t [count, 2] of fresh points at one time, and that time as [count]; float64."""
    x0 = target.sample(count, generator)
    noise = torch.randn(x0.shape, generator=generator, dtype=x0.dtype)
    t = torch.full((count,), time, dtype=x0.dtype)
    return corrupt(x0, t, noise, SCHEDULE), t
