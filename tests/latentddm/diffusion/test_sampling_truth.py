"""Known targets: draws from the posterior are exact at every number of steps, means are not."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from oracles import (
    LEVELS,
    Levels,
    Mixture,
    PosteriorDenoiser,
    gaussian,
    mean_sampler_discrepancy,
    mixture_discrepancy,
    paper_target,
    rbf_discrepancy,
)
from torch import Tensor

from latentddm.diffusion.sampling import Denoiser, SamplingStep, sample, time_grid
from latentddm.diffusion.schedules import SCHEDULES, Schedule, make_schedule

SAMPLES = 4096
ALL = [pytest.param(make_schedule(name), LEVELS[name], id=name) for name in SCHEDULES]
schedules = pytest.mark.parametrize(("schedule", "levels"), ALL)


def start(count: int, dimension: int, generator: torch.Generator) -> Tensor:
    return torch.randn(count, dimension, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("levels", LEVELS.values(), ids=LEVELS)
def test_the_oracles_posterior_is_bayes_rule_by_quadrature(levels: Levels) -> None:
    weights, variances = torch.tensor([[0.3, 0.7], [0.2, 0.6]], dtype=torch.float64)
    means = torch.tensor([[-1.0], [2.0]], dtype=torch.float64)
    target = Mixture(weights, means, variances, levels)
    grid = torch.linspace(-12, 12, 20_001, dtype=torch.float64)
    components = (-((grid[:, None] - means[:, 0]) ** 2) / (2 * variances)).exp()
    prior = (components * weights / variances.sqrt()).sum(1)
    for x_t, t in ((0.4, 0.3), (-1.0, 0.8), (0.9, 1.0)):
        x, time = torch.tensor([[x_t]], dtype=torch.float64), torch.tensor([t]).double()
        alpha, sigma = levels(time)
        density = prior * (-((x_t - alpha * grid) ** 2) / (2 * sigma**2)).exp()
        density /= density.sum()
        mean = density @ grid
        variance = density @ (grid - mean).square()
        weight, centre, spread = target.posterior(x, time)
        found = (weight * centre[..., 0]).sum()
        second = (weight * (centre[..., 0].square() + spread)).sum()
        assert float(found) == pytest.approx(float(mean), abs=1e-6)
        assert float(second - found**2) == pytest.approx(float(variance), abs=1e-6)


@schedules
@pytest.mark.parametrize("churn", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 5, 20])
def test_posterior_draws_reproduce_the_papers_target_in_any_number_of_steps(
    steps: int, churn: float, schedule: Schedule, levels: Levels
) -> None:
    target, generator = paper_target(levels), torch.Generator().manual_seed(7)
    denoiser = PosteriorDenoiser(target, seed=1)
    x = start(SAMPLES, 2, generator)
    out = sample(denoiser, x, time_grid(steps), churn, schedule, generator)
    found = rbf_discrepancy(out, target)
    assert abs(found.value) < 4 * found.standard_error
    assert found.standard_error < 5.5e-4  # small enough to see the mean denoiser's error below
    # Moments show errors that the kernel may not: the balance of the modes and the width of each.
    mode = out.sum(1, keepdim=True).sign()
    within = out - 3 * mode
    assert abs(float(mode.mean())) < 4 / SAMPLES**0.5
    assert float(within.mean(0).abs().max()) < 4 * 0.5 / SAMPLES**0.5
    covariance = within.T.cov() - 0.25 * torch.eye(2, dtype=torch.float64)
    assert float(covariance.abs().max()) < 4 * 0.25 * (2 / SAMPLES) ** 0.5


@schedules
@pytest.mark.parametrize("steps", [1, 2, 3, 5, 10, 20])
def test_the_exact_mean_misses_the_papers_target_by_the_known_amount(
    steps: int, schedule: Schedule, levels: Levels
) -> None:
    """Squared MMD by quadrature over the start; for the flow 1.332, .169, .105, .038, .0093, ..."""
    target, generator = paper_target(levels), torch.Generator().manual_seed(0)
    x, times = start(SAMPLES, 2, generator), time_grid(steps)
    out = sample(target.mean_denoiser, x, times, schedule=schedule, generator=generator)
    expected = mean_sampler_discrepancy(times.tolist(), levels)
    if schedule.name == "flow":
        known = {1: 1.332, 2: 0.169, 3: 0.105, 5: 0.038, 10: 0.0093, 20: 0.0023}[steps]
        assert expected == pytest.approx(known, rel=0.02)
    found = rbf_discrepancy(out, target)
    assert abs(found.value - expected) < 4 * found.standard_error
    assert found.value > 4 * found.standard_error


def gaussian_denoiser(levels: Levels, shared: Tensor | None = None) -> Denoiser:
    """Draws from the posterior of N(0, .25); with `shared`, one xi serves every call."""
    target = gaussian(0.25, 1, levels)

    def denoise(x_t: Tensor, t: Tensor, xi: Tensor) -> Tensor:
        _, mean, variance = target.posterior(x_t, t)
        return mean[:, 0] + variance.sqrt() * (xi if shared is None else shared)

    return denoise


@schedules
def test_one_xi_for_the_whole_trajectory_would_be_wrong(schedule: Schedule, levels: Levels) -> None:
    """The variance .25 of the flow becomes .83 at 50 steps; a fresh xi a call keeps it."""
    count, generator = 40_000, torch.Generator().manual_seed(0)
    x, xi = start(count, 1, generator), start(count, 1, generator)
    fresh, shared = (
        sample(denoiser, x, time_grid(50), schedule=schedule, generator=generator)
        for denoiser in (gaussian_denoiser(levels), gaussian_denoiser(levels, shared=xi))
    )
    relative_error = (2 / count) ** 0.5
    assert abs(float(fresh.var()) / 0.25 - 1) < 4 * relative_error
    assert float(shared.var()) > 0.5
    if schedule.name == "flow":
        assert abs(float(shared.var()) / 0.8318 - 1) < 4 * relative_error


def scaled_variance(times: list[float], scales: list[float], levels: Levels) -> float:
    """Var of the end of DDIM steps with draws K x_t + scale sqrt(C) xi, for data N(0, .25).

    K = alpha S / (alpha^2 S + sigma^2), C = S - alpha K S. Everything is linear in independent
    normals, so the variance follows from step to step; it starts at 1 and the last draw is the end.
    """
    variance, data = 1.0, 0.25
    for step, (t, s) in enumerate(pairwise(times)):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = (
            (float(level) for level in levels(torch.tensor(time, dtype=torch.float64)))
            for time in (t, s)
        )
        gain = alpha_t * data / (alpha_t**2 * data + sigma_t**2)
        of_xi = scales[step] ** 2 * (data - alpha_t * gain * data)
        if step == len(scales) - 1:
            return gain**2 * variance + of_xi
        keep, share = sigma_s / sigma_t, alpha_s - alpha_t * sigma_s / sigma_t
        variance = (keep + share * gain) ** 2 * variance + share**2 * of_xi
    raise AssertionError


@schedules
@pytest.mark.parametrize("scales", [[0.5], [1.0] * 3, [0.8, 0.9], [0.0] * 4, [0.5, 1.0, 2.0]])
def test_the_scale_of_xi_scales_the_variance_of_the_draws(
    scales: list[float], schedule: Schedule, levels: Levels
) -> None:
    count, generator = 40_000, torch.Generator().manual_seed(0)
    x, times = start(count, 1, generator), time_grid(len(scales))
    expected = scaled_variance(times.tolist(), scales, levels)
    if len(scales) == 1:
        assert expected == pytest.approx(0.5**2 * 0.25)  # one step from pure noise
    if set(scales) == {1.0}:
        assert expected == pytest.approx(0.25)  # the exact sampler
    given = scales[0] if len(set(scales)) == 1 else scales
    out = sample(
        gaussian_denoiser(levels),
        x,
        times,
        schedule=schedule,
        generator=generator,
        xi_scale=given,
    )
    assert abs(float(out.var()) / expected - 1) < 4 * (2 / count) ** 0.5


@schedules
def test_safety_costs_nothing_when_the_last_x0_is_returned(
    schedule: Schedule, levels: Levels
) -> None:
    """Stopping at x_delta instead costs a squared MMD; of the flow at delta = .05, .0103."""
    delta, target, generator = 0.05, paper_target(levels), torch.Generator().manual_seed(3)
    seen: list[SamplingStep] = []
    noise = start(SAMPLES, 2, generator)
    ends = torch.tensor([1 - delta, delta], dtype=torch.float64)
    (first_alpha, last_alpha), (first_sigma, last_sigma) = levels(ends)
    x = first_alpha * target.draw(SAMPLES, generator) + first_sigma * noise
    out = sample(
        PosteriorDenoiser(target, seed=2),
        x,
        time_grid(5, safety=delta),
        schedule=schedule,
        generator=generator,
        callback=seen.append,
    )
    found, stopped = rbf_discrepancy(out, target), rbf_discrepancy(seen[-1].x_s, target)
    assert abs(found.value) < 4 * found.standard_error
    variance = last_alpha**2 * target.variances + last_sigma**2
    noisy = Mixture(target.weights, last_alpha * target.means, variance)
    expected = mixture_discrepancy(noisy, target)
    if schedule.name == "flow":
        assert expected == pytest.approx(0.0103, abs=1e-4)
    assert abs(stopped.value - expected) < 4 * stopped.standard_error
