"""Scores are unbiased and proper: their mean is exact, and least for the true distribution."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import product

import pytest
import torch
from oracles import Mixture, energy_distance, expected_energy_score, paper_target
from scipy.optimize import minimize_scalar
from torch import Tensor

from latentddm.scores import EnergyConfig, KernelConfig, ScoreConfig, energy_score, kernel_score
from latentddm.scores.energy import energy_terms
from latentddm.scores.kernels import KERNELS
from latentddm.scores.score import antithetic_pairs

POINTS = torch.tensor([[0.0, 0.0], [1.0, 0.5], [-0.5, 2.0]], dtype=torch.float64)
P = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
Q = torch.tensor([0.6, 0.1, 0.3], dtype=torch.float64)
CONFIGS: list[ScoreConfig] = [
    EnergyConfig(beta=0.3, beta_data=1.5),
    *(KernelConfig(kernel=kernel, bandwidth=0.7) for kernel in KERNELS),
]


def expectation_over_draws(
    score: Callable[[Tensor, Tensor], Tensor], chances: Tensor, target: Tensor, m: int
) -> float:
    """The exact mean of a score over all m-tuples of independent draws from POINTS."""
    tuples = torch.tensor(list(product(range(3), repeat=m)))  # [3^m, m]
    scores = score(POINTS[tuples], target.expand(len(tuples), -1))
    return float(chances[tuples].prod(1) @ scores)


def risk(score: Callable[[Tensor, Tensor], Tensor], chances: Tensor, m: int) -> float:
    """The exact mean of a score of draws from `chances` against targets from Q."""
    means = [expectation_over_draws(score, chances, target, m) for target in POINTS]
    return float(Q @ torch.tensor(means, dtype=torch.float64))


@pytest.mark.parametrize("m", [2, 3, 4])
@pytest.mark.parametrize("beta", [0.3, 1.0, 2.0])
def test_energy_score_is_unbiased(beta: float, m: int) -> None:
    """A U-statistic: for every m its mean is that of two independent draws, coincidence included.

    Dividing the pairs by m^2 would give the mean of lambda (m - 1) / m.
    """
    target = POINTS[1] + 0.3
    confinement = float(P @ (POINTS - target).norm(dim=1) ** beta)
    interaction = float(P @ torch.cdist(POINTS, POINTS) ** beta @ P)
    for lam in (0.5, 1.0):
        score = partial(energy_score, beta=beta, lam=lam)
        found = expectation_over_draws(score, P, target, m)
        assert found == pytest.approx(confinement - lam / 2 * interaction, abs=1e-12)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: getattr(config, "kernel", "energy"))
@pytest.mark.parametrize("m", [2, 4])
def test_the_scores_of_training_are_unbiased_over_all_views(m: int, config: ScoreConfig) -> None:
    """Samples of one channel at two positions; the mean is that of one draw and of one pair."""
    score, target, t = config.make(), POINTS[1] + 0.3, torch.tensor([0.4], dtype=torch.float64)

    def as_images(points: Tensor) -> Tensor:
        return points.reshape(*points.shape[:-1], 1, 1, 2)

    def distances(x: Tensor, y: Tensor) -> Tensor:
        """Of each of x [N, 2] to one y [2], from the confinement of a single draw."""
        y = as_images(y.expand(len(x), -1))
        return score(as_images(x)[:, None], y, t.expand(len(x))).confinement

    confinement = P @ distances(POINTS, target)
    interaction = P @ torch.stack([distances(POINTS, y) for y in POINTS]) @ P

    def loss(draws: Tensor, y: Tensor) -> Tensor:
        terms = score(as_images(draws), as_images(y), t.expand(len(y)))
        return terms.score(0.8)

    found = expectation_over_draws(loss, P, target, m)
    assert found == pytest.approx(float(confinement - 0.4 * interaction), abs=1e-12)


@pytest.mark.parametrize("groups", [2, 3])
@pytest.mark.parametrize("beta", [0.3, 1.0, 2.0])
def test_antithetic_draws_leave_the_score_unbiased(beta: float, groups: int) -> None:
    """Exact means over all xi in {-1, 0, 1}^groups; xi and -xi have one distribution."""
    chances = torch.tensor([0.3, 0.4, 0.3], dtype=torch.float64)
    target = POINTS[1] + 0.3
    confinement = float(chances @ (POINTS - target).norm(dim=1) ** beta)
    interaction = float(chances @ torch.cdist(POINTS, POINTS) ** beta @ chances)

    places = torch.tensor(list(product(range(3), repeat=groups)))  # xi + 1
    xi = antithetic_pairs(places[..., None] - 1)[..., 0]
    terms = energy_terms(POINTS[xi + 1], target.expand(len(xi), -1), beta, antithetic=True)
    weights = chances[places].prod(1)
    assert float(weights @ terms.confinement) == pytest.approx(confinement, abs=1e-12)
    assert float(weights @ terms.interaction) == pytest.approx(interaction, abs=1e-12)


def test_antithetic_draws_make_a_gradient_of_less_noise() -> None:
    """For the mean of a Gaussian: four of them have less noise than eight independent ones."""
    random = torch.Generator().manual_seed(0)
    target = torch.randn(4000, 8, generator=random)

    def gradient(xi: Tensor, antithetic: bool = False) -> Tensor:
        mean = torch.zeros(len(xi), 8, requires_grad=True)
        score = energy_terms(mean[:, None] + xi, target, antithetic=antithetic).score(1.0)
        return torch.autograd.grad(score.sum(), mean)[0]

    def draw(m: int) -> Tensor:
        return torch.randn(4000, m, 8, generator=random)

    without_noise = gradient(draw(64))
    four = gradient(antithetic_pairs(draw(2)), antithetic=True) - without_noise
    eight = gradient(draw(8)) - without_noise
    assert four.square().mean() < eight.square().mean()


@pytest.mark.parametrize("beta", [0.3, 1.0, 1.7])
def test_the_excess_over_the_truth_is_half_the_energy_distance(beta: float) -> None:
    score = partial(energy_score, beta=beta)
    table = torch.cdist(POINTS, POINTS) ** beta
    distance = float(2 * P @ table @ Q - P @ table @ P - Q @ table @ Q)
    assert distance > 0.05
    assert risk(score, P, 3) - risk(score, Q, 3) == pytest.approx(distance / 2, abs=1e-12)
    irreducible = float(Q @ table @ Q) / 2
    assert risk(score, Q, 3) == pytest.approx(irreducible, abs=1e-12)


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_excess_of_a_kernel_score_is_a_multiple_of_mmd(kernel: str) -> None:
    """c / 2 times the squared MMD of the kernel k, where the distance is c (1 - k)."""
    h = 0.8
    r = torch.cdist(POINTS, POINTS)
    gram, c = {
        "rbf": ((-(r**2) / (2 * h**2)).exp(), 2 * h**2),
        "imq": (h / (h**2 + r**2).sqrt(), 2 * h**2),
        "exponential": ((-r / h).exp(), h),
    }[kernel]
    score = partial(kernel_score, kernel=kernel, bandwidth=h)
    expected = c / 2 * float((P - Q) @ gram @ (P - Q))
    assert risk(score, P, 2) - risk(score, Q, 2) == pytest.approx(expected, abs=1e-12)


def gaussian_rbf_score(shift: float, std: float, h: float, dimension: int) -> float:
    """The mean RBF score of N(shift, std^2 I) against N(0, I), r the root mean square.

    E k(X - Y) of Z ~ N(d, v I): (1 + v / w)^(-D / 2) exp(-|d|^2 / (2 (w + v))), w = h^2 D.
    """
    w = h**2 * dimension

    def kernel(squared_shift: float, variance: float) -> float:
        peak = (1 + variance / w) ** (-dimension / 2)
        return peak * math.exp(-squared_shift / (2 * (w + variance)))

    to_target = 1 - kernel(dimension * shift**2, std**2 + 1)
    return 2 * h**2 * (to_target - (1 - kernel(0.0, 2 * std**2)) / 2)


@pytest.mark.parametrize("h", [0.5, 2.0])
def test_the_kernel_score_of_gaussians_is_its_closed_form_and_least_at_the_truth(h: float) -> None:
    generator, count, m = torch.Generator().manual_seed(0), 20_000, 4

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    score = KernelConfig(bandwidth=h, views={"whole": 1.0}).make()
    noise, target = normal(count, m, 2, 1, 3), normal(count, 2, 1, 3)
    truth = gaussian_rbf_score(0.0, 1.0, h, 6)
    at_truth = score(noise, target, torch.zeros(count)).score(1.0)
    assert_within_four_errors(at_truth, truth)
    for shift, std in ((0.4, 1.0), (-0.4, 1.0), (0.0, 0.6), (0.0, 1.5), (0.3, 0.8)):
        expected = gaussian_rbf_score(shift, std, h, 6)
        found = score(shift + std * noise, target, torch.zeros(count)).score(1.0)
        assert_within_four_errors(found, expected)
        assert_within_four_errors(found - at_truth, expected - truth)
        assert float((found - at_truth).mean()) > 0


def wrong_mixture() -> Mixture:
    """The paper's target with uneven weights, a shifted mode and another width."""
    truth = paper_target()
    shift = torch.tensor([[0.0, 0.0], [0.5, -0.3]], dtype=torch.float64)
    weights = torch.tensor([0.4, 0.6], dtype=torch.float64)
    return Mixture(weights, truth.means + shift, truth.variances * weights)


@pytest.mark.parametrize("beta", [0.3, 1.0, 1.7])
def test_the_energy_score_of_a_mixture_is_its_closed_form(beta: float) -> None:
    """Monte Carlo within four standard errors of the confluent hypergeometric function."""
    generator = torch.Generator().manual_seed(0)
    truth, wrong, count, m = paper_target(), wrong_mixture(), 20_000, 4
    target = truth.draw(count, generator)
    scores = {}
    for name, model in {"truth": truth, "wrong": wrong}.items():
        draws = model.draw(count * m, generator).reshape(count, m, 2)
        for lam in (0.5, 1.0):
            scores[name] = energy_score(draws, target, beta, lam)
            expected = expected_energy_score(model, truth, beta, lam)
            assert_within_four_errors(scores[name], expected)
    excess = scores["wrong"] - scores["truth"]  # both at lambda 1
    assert_within_four_errors(excess, energy_distance(wrong, truth, beta) / 2)


def assert_within_four_errors(samples: Tensor, expected: float) -> None:
    error = float(samples.std()) / len(samples) ** 0.5
    assert abs(float(samples.mean()) - expected) < 4 * error


@pytest.mark.parametrize("lam", [0.3, 0.7, 1.0])
@pytest.mark.parametrize("beta", [0.5, 1.0, 1.5])
def test_a_smaller_lambda_narrows_the_best_gaussian_by_the_formula(beta: float, lam: float) -> None:
    """Of N(mu, s^2 I) for N(mu, s0^2 I): s^2 / s0^2 = 1 / (2 lambda^(-2 / (2 - beta)) - 1)."""
    points = torch.quasirandom.SobolEngine(6, scramble=True, seed=0).draw(2**15).double()
    noise = torch.special.ndtri(points.clamp(1e-9, 1 - 1e-9)).reshape(-1, 3, 2)
    draws = torch.cat([noise[:, :2], -noise[:, :2]])  # antithetic: a narrow s is lost in noise
    target = 3 * torch.cat([noise[:, 2], noise[:, 2]])  # s0 = 3

    def score(log_scale: float) -> float:
        return float(energy_score(math.exp(log_scale) * draws, target, beta, lam).mean())

    best = minimize_scalar(score, bounds=(-4, 2), method="bounded", options={"xatol": 1e-4})
    found = math.exp(2 * best.x) / 9
    assert found == pytest.approx(1 / (2 * lam ** (-2 / (2 - beta)) - 1), rel=0.01)


@pytest.mark.parametrize("lam", [0.4, 0.8])
def test_a_smaller_lambda_truncates_the_best_distribution_on_a_line(lam: float) -> None:
    """In one dimension, at beta 1, the optimum is the target cut to its central lambda mass."""
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(200_000, 5, generator=generator, dtype=torch.float64)
    target = torch.special.ndtri(uniform[:, 4])

    def score(mass: float) -> float:
        draws = torch.special.ndtri(0.5 + mass * (uniform[:, :4] - 0.5))
        return float(energy_score(draws, target, 1.0, lam).mean())

    best = minimize_scalar(score, bounds=(0.05, 1), method="bounded", options={"xatol": 1e-4})
    assert best.x == pytest.approx(lam, abs=0.01)
