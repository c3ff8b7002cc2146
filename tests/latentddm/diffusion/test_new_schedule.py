"""One more schedule is a class and a line: sampler, solvers and scheduler take it as it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from oracles import gaussian
from torch import Tensor

from latentddm.diffusion.process import bridge_step, corrupt
from latentddm.diffusion.sampling import sample, time_grid
from latentddm.diffusion.schedules import SCHEDULES, make_schedule
from latentddm.diffusion.solvers import SOLVERS, solve, solver_grid
from latentddm.hub.scheduler import DistributionalScheduler

VARIANCE = 0.25


@dataclass(frozen=True)
class ParabolicSchedule:
    """alpha_t = 1 - t^2, sigma_t = t: neither linear nor variance preserving."""

    name = "parabolic"

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t**2

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def log_snr(self, t: Tensor) -> Tensor:
        return 2 * (self.alpha(t).log() - t.log())

    def time_at(self, log_snr: Tensor) -> Tensor:
        """The positive root of t^2 + q t - 1, q = alpha / sigma; written so that none cancels."""
        q = torch.exp(log_snr / 2)
        return 2 / (q + (q**2 + 4).sqrt())


def parabolic_levels(t: Tensor) -> tuple[Tensor, Tensor]:
    return 1 - t**2, t


@pytest.fixture(autouse=True)
def with_mine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one line."""
    monkeypatch.setitem(SCHEDULES, "parabolic", ParabolicSchedule)


def start(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 1, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("churn", [0.0, 1.0])
@pytest.mark.parametrize("steps", [1, 4])
def test_the_sampler_is_exact_with_it(steps: int, churn: float) -> None:
    target, count = gaussian(VARIANCE, 1, parabolic_levels), 20_000

    def draw(x_t: Tensor, t: Tensor, xi: Tensor) -> Tensor:
        _, mean, variance = target.posterior(x_t, t)
        return mean[:, 0] + variance.sqrt() * xi

    schedule, generator = make_schedule("parabolic"), torch.Generator().manual_seed(1)
    times = time_grid(steps, "log_snr", schedule=schedule)
    out = sample(draw, start(count), times, churn, schedule, generator)
    assert abs(float(out.var()) / VARIANCE - 1) < 4 * (2 / count) ** 0.5


@pytest.mark.parametrize("solver", sorted(set(SOLVERS) - {"sde-dpmsolver++"}))
def test_the_solvers_reach_the_end_of_the_exact_trajectory(solver: str) -> None:
    """On Gaussian data x_t / sqrt(alpha^2 S + sigma^2) is constant along it."""
    target, x, schedule = gaussian(VARIANCE, 1, parabolic_levels), start(50), ParabolicSchedule()
    grid = solver_grid(solver, 400, "uniform", safety=1e-3, schedule=schedule)
    alpha, sigma = parabolic_levels(grid[0])
    exact = x * (VARIANCE / (alpha**2 * VARIANCE + sigma**2)).sqrt()
    out = solve(target.mean_denoiser, x, grid, solver, schedule=schedule)
    torch.testing.assert_close(out, exact, rtol=6e-3, atol=1e-3)
    if solver != "ddim":  # in the wrong clock
        wrong = solve(target.mean_denoiser, x, grid, solver)
        assert float((wrong - exact).abs().max()) > 0.05


def test_the_scheduler_takes_it_by_name_and_from_its_saved_config(tmp_path: Path) -> None:
    scheduler = DistributionalScheduler(schedule="parabolic", grid="log_snr", churn=0.5)
    scheduler.save_pretrained(tmp_path)
    scheduler = DistributionalScheduler.from_pretrained(tmp_path)
    schedule, shape = ParabolicSchedule(), (2, 3, 4, 4)
    scheduler.set_timesteps(4)
    times = time_grid(4, "log_snr", schedule=schedule)
    torch.testing.assert_close(scheduler.sigmas.double(), times, rtol=0, atol=1e-7)
    x_t, x0 = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    random = torch.Generator().manual_seed(3)
    found = scheduler.step(x0, scheduler.timesteps[1], x_t, random).prev_sample
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    expected = bridge_step(x_t, x0, times[1].float(), times[2].float(), noise, schedule, 0.5)
    torch.testing.assert_close(found, expected)
    noisy = scheduler.add_noise(x0, noise, torch.tensor([250, 900]))
    torch.testing.assert_close(noisy, corrupt(x0, torch.tensor([0.25, 0.9]), noise, schedule))
