"""The scores equal their definitions, term by term, and have the gradients that training needs."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import permutations, product

import pytest
import torch
from torch import Tensor

from latentddm.scores.score import Kernel, ScoreTerms, energy_score, energy_terms, kernel_score

BETAS = [0.1, 0.7, 1.0, 1.5, 2.0]
KERNELS: list[Kernel] = ["rbf", "imq", "exponential"]


def draws_and_target(batch: int, m: int, *shape: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randn(batch, m, *shape, generator=generator, dtype=torch.float64)
    return draws, torch.randn(batch, *shape, generator=generator, dtype=torch.float64)


def by_loops(
    draws: Tensor, target: Tensor, distance: Callable[[Tensor, Tensor], float], lam: float
) -> float:
    """The score of one sample as it is written: a sum over j, less one over all j != k."""
    m = len(draws)
    confinement = sum(distance(one, target) for one in draws) / m
    if m == 1:
        return confinement
    pairs = sum(distance(one, other) for one, other in permutations(draws, 2))
    return confinement - lam / (2 * m * (m - 1)) * pairs


def power_distance(beta: float) -> Callable[[Tensor, Tensor], float]:
    return lambda x, y: math.dist(x.flatten().tolist(), y.flatten().tolist()) ** beta


def kernel_distance(kernel: Kernel, h: float) -> Callable[[Tensor, Tensor], float]:
    """The formulas of the paper's kernels as distances, h the bandwidth."""

    def distance(x: Tensor, y: Tensor) -> float:
        r = math.dist(x.flatten().tolist(), y.flatten().tolist())
        if kernel == "rbf":
            return 2 * h**2 * (1 - math.exp(-(r**2) / (2 * h**2)))
        if kernel == "imq":
            return 2 * h**3 * (1 / h - (h**2 + r**2) ** -0.5)
        return h * (1 - math.exp(-r / h))

    return distance


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("m", [1, 2, 3, 5])
def test_energy_score_is_its_double_loop(m: int, beta: float) -> None:
    draws, target = draws_and_target(4, m, 3, 2, 2)
    for lam in (0.0, 0.4, 1.0):
        found = energy_score(draws, target, beta, lam).tolist()
        expected = [
            by_loops(one, y, power_distance(beta), lam)
            for one, y in zip(draws, target, strict=True)
        ]
        assert found == pytest.approx(expected, abs=1e-12)


def test_beta_and_lambda_may_differ_in_each_sample() -> None:
    draws, target = draws_and_target(5, 4, 3, 2)
    beta = torch.tensor(BETAS, dtype=torch.float64)
    lam = torch.tensor([0.0, 0.3, 1.0, 0.5, 0.9], dtype=torch.float64)
    found = energy_score(draws, target, beta, lam)
    assert found.shape == (5,)
    for i in range(5):
        expected = by_loops(draws[i], target[i], power_distance(BETAS[i]), float(lam[i]))
        assert float(found[i]) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1)])
def test_the_unit_value_is_a_third(shape: tuple[int, ...]) -> None:
    """Draws 1, 2, 4 against 3: (2 + 1 + 1) / 3 - (1 + 3 + 2) / 6."""
    draws = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64).reshape(1, 3, *shape)
    target = torch.tensor([3.0], dtype=torch.float64).reshape(1, *shape)
    assert float(energy_score(draws, target)) == pytest.approx(1 / 3, abs=1e-15)


def test_plain_diffusion_is_the_squared_error() -> None:
    draws, target = draws_and_target(6, 1, 3, 4, 4)
    expected = (draws[:, 0] - target).square().sum((1, 2, 3))
    found = energy_score(draws, target, beta=2.0, lam=0.0)
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=0)


def test_beta_two_sees_the_mean_only() -> None:
    """At beta 2 and lambda 1: ||mean - y||^2 less the mean's own variance, S^2 / m."""
    draws, target = draws_and_target(3, 5, 4)
    own = draws.var(1).sum(1) / 5
    expected = (draws.mean(1) - target).square().sum(1) - own
    torch.testing.assert_close(energy_score(draws, target, 2.0, 1.0), expected)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("m", [1, 3])
def test_kernel_score_is_its_double_loop(kernel: Kernel, m: int) -> None:
    draws, target = draws_and_target(3, m, 2, 3)
    for h in (0.5, 2.0):
        found = kernel_score(draws, target, kernel, h).tolist()
        distance = kernel_distance(kernel, h)
        expected = [by_loops(one, y, distance, 1.0) for one, y in zip(draws, target, strict=True)]
        assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("kernel", "beta"), [("rbf", 2.0), ("imq", 2.0), ("exponential", 1.0)])
def test_kernel_scores_tend_to_energy_scores_for_a_large_bandwidth(
    kernel: Kernel, beta: float
) -> None:
    """RBF and IMQ tend to the diffusion loss, the exponential kernel to beta 1; in float32 too."""
    draws, target = draws_and_target(4, 3, 2, 3)
    limit = energy_score(draws, target, beta)
    gaps = [float((kernel_score(draws, target, kernel, h) - limit).abs().max()) for h in (1e2, 1e3)]
    assert gaps[1] < 0.02
    assert gaps[1] / gaps[0] == pytest.approx(10.0 ** (-beta), rel=0.05)
    single = kernel_score(draws.float(), target.float(), kernel, 1e6)
    torch.testing.assert_close(single.double(), limit, rtol=0, atol=1e-4)


@pytest.mark.parametrize("beta", [0.1, 1.0, 1.6, 2.0])
def test_gradient_is_the_formula_of_the_method(beta: float) -> None:
    draws, target = draws_and_target(2, 4, 3, 2)
    draws.requires_grad_()
    lam, m = 0.7, 4
    (found,) = torch.autograd.grad(energy_score(draws, target, beta, lam).sum(), draws)
    with torch.no_grad():
        for i, j in product(range(2), range(m)):
            d = draws[i, j] - target[i]
            expected = beta / m * d.norm() ** (beta - 2) * d
            for k in set(range(m)) - {j}:
                d = draws[i, j] - draws[i, k]
                expected -= lam * beta / (m * (m - 1)) * d.norm() ** (beta - 2) * d
            torch.testing.assert_close(found[i, j], expected, rtol=0, atol=1e-12)


def test_gradients_pass_finite_differences() -> None:
    draws, target = draws_and_target(2, 3, 2, 2)
    draws.requires_grad_()
    for beta in BETAS:
        assert torch.autograd.gradcheck(lambda x, b=beta: energy_score(x, target, b, 0.8), draws)
    for share in (0.0, 0.3, 1.0):
        assert torch.autograd.gradcheck(
            lambda x, share=share: energy_terms(x, target, 1.0, share, mean_square=True).score(0.5),
            draws,
        )
    for kernel in KERNELS:
        assert torch.autograd.gradcheck(lambda x, k=kernel: kernel_score(x, target, k), draws)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("beta", [0.1, 1.0, 2.0])
def test_coincident_draws_have_a_finite_gradient(beta: float, dtype: torch.dtype) -> None:
    """Draws that coincide, with each other or with the target, pull nowhere instead of NaN."""
    draws, target = (x.to(dtype) for x in draws_and_target(3, 4, 2, 2))
    draws[0] = target[0]  # all coincide
    draws[1, 1] = draws[1, 0]  # two of four coincide
    draws.requires_grad_()
    score = energy_score(draws, target, beta)
    (gradient,) = torch.autograd.grad(score.sum(), draws)
    assert torch.isfinite(gradient).all()
    assert score[0].item() == 0
    assert (gradient[0] == 0).all()
    assert (gradient[2] != 0).all()
    torch.testing.assert_close(gradient[1, 0], gradient[1, 1])


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_draws_a_hair_apart_have_a_finite_gradient(beta: float) -> None:
    """The power of a squared distance near the smallest float overflows in the backward pass."""
    for gap in (1e-18, 1e-20, 1e-22, 1e-30):
        draws = torch.zeros(1, 2, 3)
        draws[0, 1] = gap
        draws.requires_grad_()
        score = energy_score(draws, torch.ones(1, 3), beta)
        (gradient,) = torch.autograd.grad(score.sum(), draws)
        assert torch.isfinite(gradient).all(), gap


def test_the_order_of_the_draws_says_nothing() -> None:
    draws, target = draws_and_target(3, 4, 2, 2)
    mixed = draws[:, [2, 0, 3, 1]]
    for score in (energy_score, kernel_score):
        torch.testing.assert_close(score(mixed, target), score(draws, target))


@pytest.mark.parametrize("beta", BETAS)
def test_energy_score_is_homogeneous_and_ignores_shift_and_rotation(beta: float) -> None:
    draws, target = draws_and_target(3, 4, 5)
    score = energy_score(draws, target, beta)
    scaled = energy_score(-2.5 * draws, -2.5 * target, beta)
    torch.testing.assert_close(scaled, 2.5**beta * score, rtol=1e-12, atol=0)
    generator = torch.Generator().manual_seed(1)
    matrix = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    rotation = torch.linalg.qr(matrix)[0]
    moved = energy_score(draws @ rotation + 3, target @ rotation + 3, beta)
    torch.testing.assert_close(moved, score, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mean_square", [False, True])
def test_the_norm_per_position_is_a_loop_over_positions(mean_square: bool) -> None:
    draws, target = draws_and_target(2, 3, 4, 2, 3)
    beta = torch.tensor([0.6, 1.3], dtype=torch.float64)
    terms = energy_terms(draws, target, beta, 1.0, mean_square)
    for i in range(2):
        scores = []
        for row, column in product(range(2), range(3)):
            distance = power_distance(float(beta[i]))
            scale = 4 ** (-float(beta[i]) / 2) if mean_square else 1.0
            here = draws[i, :, :, row, column], target[i, :, row, column]
            scores.append(scale * by_loops(*here, distance, 0.9))
        assert float(terms.score(0.9)[i]) == pytest.approx(sum(scores) / 6, abs=1e-12)


def test_a_share_of_each_norm_is_that_share_of_each_score() -> None:
    draws, target = draws_and_target(2, 3, 4, 2, 3)
    for beta in (1.3, torch.tensor([0.6, 1.3], dtype=torch.float64)):
        whole, position, mixed = (
            energy_terms(draws, target, beta, share, mean_square=True) for share in (0.0, 1.0, 0.3)
        )
        for parts in zip(whole, position, mixed, strict=True):
            torch.testing.assert_close(parts[2], 0.7 * parts[0] + 0.3 * parts[1])


def test_the_global_mean_square_norm_divides_by_the_whole_dimension() -> None:
    draws, target = draws_and_target(2, 3, 4, 2, 3)
    plain = energy_terms(draws, target, 1.4)
    scaled = energy_terms(draws, target, 1.4, mean_square=True)
    for one, other in zip(plain, scaled, strict=True):
        torch.testing.assert_close(other, one * 24 ** (-0.7), rtol=1e-12, atol=0)


def test_terms_are_the_parts_of_the_score() -> None:
    draws, target = draws_and_target(2, 3, 4)
    terms = energy_terms(draws, target, 1.2)
    lam = torch.tensor([0.2, 0.9], dtype=torch.float64)
    torch.testing.assert_close(terms.score(lam), energy_score(draws, target, 1.2, lam))
    torch.testing.assert_close(terms.confinement, energy_score(draws, target, 1.2, 0.0))
    assert isinstance(terms, ScoreTerms)
    assert (energy_terms(draws[:, :1], target).interaction == 0).all()


@pytest.mark.parametrize(
    ("draws", "target"), [((4, 3, 2), (3, 2)), ((3, 4, 2), (3, 1)), ((3, 4, 2, 5), (3, 5, 2))]
)
def test_shapes_that_would_broadcast_are_refused(
    draws: tuple[int, ...], target: tuple[int, ...]
) -> None:
    for score in (energy_score, kernel_score):
        with pytest.raises(ValueError, match="draws must be"):
            score(torch.zeros(draws), torch.zeros(target))
