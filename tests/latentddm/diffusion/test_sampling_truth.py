"""Against known targets: draws from the posterior are exact at every number of steps, means not."""

from __future__ import annotations

import pytest
import torch
from oracles import (
    Mixture,
    PosteriorDenoiser,
    mean_sampler_discrepancy,
    mixture_discrepancy,
    paper_target,
    rbf_discrepancy,
)
from torch import Tensor

from latentddm.diffusion.sampling import Denoiser, SamplingStep, sample, time_grid

SAMPLES = 4096


def start(count: int, dimension: int, generator: torch.Generator) -> Tensor:
    return torch.randn(count, dimension, generator=generator, dtype=torch.float64)


def test_the_oracles_posterior_is_bayes_rule_by_quadrature() -> None:
    weights, variances = torch.tensor([[0.3, 0.7], [0.2, 0.6]], dtype=torch.float64)
    law = Mixture(weights, torch.tensor([[-1.0], [2.0]], dtype=torch.float64), variances)
    grid = torch.linspace(-12, 12, 20_001, dtype=torch.float64)
    components = (-((grid[:, None] - law.means[:, 0]) ** 2) / (2 * variances)).exp()
    prior = (components * weights / variances.sqrt()).sum(1)
    for x_t, t in ((0.4, 0.3), (-1.0, 0.8), (0.9, 1.0)):
        density = prior * (-((x_t - (1 - t) * grid) ** 2) / (2 * t**2)).exp()
        density /= density.sum()
        mean = density @ grid
        variance = density @ (grid - mean).square()
        x, time = torch.tensor([[x_t]], dtype=torch.float64), torch.tensor([t]).double()
        weight, centre, spread = law.posterior(x, time)
        found = (weight * centre[..., 0]).sum()
        second = (weight * (centre[..., 0].square() + spread)).sum()
        assert float(found) == pytest.approx(float(mean), abs=1e-6)
        assert float(second - found**2) == pytest.approx(float(variance), abs=1e-6)


@pytest.mark.parametrize("churn", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 5, 20])
def test_posterior_draws_reproduce_the_papers_target_in_any_number_of_steps(
    steps: int, churn: float
) -> None:
    target, generator = paper_target(), torch.Generator().manual_seed(7)
    denoiser = PosteriorDenoiser(target, seed=1)
    x = start(SAMPLES, 2, generator)
    out = sample(denoiser, x, time_grid(steps), churn, generator=generator)
    found = rbf_discrepancy(out, target)
    assert abs(found.value) < 4 * found.standard_error
    assert found.standard_error < 5e-4  # small enough to see the mean denoiser's error below
    # Moments see what the kernel may not: the balance of the modes and the width of each.
    mode = out.sum(1, keepdim=True).sign()
    within = out - 3 * mode
    assert abs(float(mode.mean())) < 4 / SAMPLES**0.5
    assert float(within.mean(0).abs().max()) < 4 * 0.5 / SAMPLES**0.5
    covariance = within.T.cov() - 0.25 * torch.eye(2, dtype=torch.float64)
    assert float(covariance.abs().max()) < 4 * 0.25 * (2 / SAMPLES) ** 0.5


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 10, 20])
def test_the_exact_mean_misses_the_papers_target_by_the_known_amount(steps: int) -> None:
    """Squared MMD by quadrature over the start: 1.332, .169, .105, .038, .0093, .0023."""
    target, generator = paper_target(), torch.Generator().manual_seed(0)
    times = time_grid(steps)
    out = sample(target.mean_denoiser, start(SAMPLES, 2, generator), times, generator=generator)
    expected = mean_sampler_discrepancy(times.tolist())
    known = {1: 1.332, 2: 0.169, 3: 0.105, 5: 0.038, 10: 0.0093, 20: 0.0023}[steps]
    assert expected == pytest.approx(known, rel=0.02)
    found = rbf_discrepancy(out, target)
    assert abs(found.value - expected) < 4 * found.standard_error
    assert found.value > 4 * found.standard_error


def gaussian_denoiser(shared: Tensor | None = None) -> Denoiser:
    """Draws from the posterior of N(0, .25); with `shared`, one xi serves every call."""
    law = Mixture(*(torch.tensor(v, dtype=torch.float64) for v in ([1.0], [[0.0]], [0.25])))

    def denoise(x_t: Tensor, t: Tensor, xi: Tensor) -> Tensor:
        _, mean, variance = law.posterior(x_t, t)
        return mean[:, 0] + variance.sqrt() * (xi if shared is None else shared)

    return denoise


def test_one_xi_for_the_whole_trajectory_would_be_wrong() -> None:
    """The variance .25 becomes .83 at 50 steps; a fresh xi a call, as `sample` draws, keeps it."""
    count, generator = 40_000, torch.Generator().manual_seed(0)
    x, xi = start(count, 1, generator), start(count, 1, generator)
    fresh, shared = (
        sample(denoiser, x, time_grid(50), generator=generator)
        for denoiser in (gaussian_denoiser(), gaussian_denoiser(shared=xi))
    )
    relative_error = (2 / count) ** 0.5
    assert abs(float(fresh.var()) / 0.25 - 1) < 4 * relative_error
    assert abs(float(shared.var()) / 0.8318 - 1) < 4 * relative_error


def test_safety_costs_nothing_when_the_last_x0_is_returned() -> None:
    """Stopping at x_delta instead costs a squared MMD of .0103 at delta = .05."""
    delta, target, generator = 0.05, paper_target(), torch.Generator().manual_seed(3)
    seen: list[SamplingStep] = []
    noise = start(SAMPLES, 2, generator)
    x = delta * target.draw(SAMPLES, generator) + (1 - delta) * noise
    out = sample(
        PosteriorDenoiser(target, seed=2),
        x,
        time_grid(5, safety=delta),
        generator=generator,
        callback=seen.append,
    )
    found, stopped = rbf_discrepancy(out, target), rbf_discrepancy(seen[-1].x_s, target)
    assert abs(found.value) < 4 * found.standard_error
    variance = (1 - delta) ** 2 * target.variances + delta**2
    law = Mixture(target.weights, (1 - delta) * target.means, variance)
    expected = mixture_discrepancy(law, target)
    assert expected == pytest.approx(0.0103, abs=1e-4)
    assert abs(stopped.value - expected) < 4 * stopped.standard_error
