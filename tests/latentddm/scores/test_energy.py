"""The energy score equals its definition, term by term, and so does its gradient."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from score_definitions import by_loops, draws_and_target, power_distance

from latentddm.scores import EnergyConfig, ScoreTerms, energy_score, kernel_score
from latentddm.scores.energy import energy_terms

BETAS = [0.1, 0.7, 1.0, 1.5, 2.0]


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


def test_beta_two_depends_on_the_mean_only() -> None:
    """At beta 2 and lambda 1: ||mean - y||^2 less the mean's own variance, S^2 / m."""
    draws, target = draws_and_target(3, 5, 4)
    own = draws.var(1).sum(1) / 5
    expected = (draws.mean(1) - target).square().sum(1) - own
    torch.testing.assert_close(energy_score(draws, target, 2.0, 1.0), expected)


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


@pytest.mark.parametrize("beta", BETAS)
def test_gradients_pass_finite_differences(beta: float) -> None:
    draws, target = draws_and_target(2, 3, 2, 2)
    draws.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: energy_score(x, target, beta, 0.8), draws)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("views", [{"whole": 1.0}, {"position": 1.0}, None])
@pytest.mark.parametrize("beta", [0.1, 1.0, 2.0])
def test_coincident_draws_have_a_finite_gradient(
    beta: float, views: dict[str, float] | None, dtype: torch.dtype
) -> None:
    """Draws that coincide, with each other or with the target, have no gradient instead of NaN."""
    draws, target = (x.to(dtype) for x in draws_and_target(3, 4, 2, 2, 2))
    draws[0] = target[0]  # all coincide
    draws[1, 1] = draws[1, 0]  # two of four coincide
    draws.requires_grad_()
    config = EnergyConfig(beta=beta) if views is None else EnergyConfig(beta=beta, views=views)
    score = config.make()(draws, target, torch.full((3,), 0.5)).score(1.0)
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


def test_close_draws_far_from_the_origin_keep_their_distance() -> None:
    """The Gram trick |x|^2 + |y|^2 - 2 x y would lose 1e-4 here; direct differences lose 1e-7."""
    offset = 100.0 * torch.ones(1, 2, 4)
    offset[0, 1] += 0.01
    terms = energy_terms(offset, offset[:, 0])
    exact = float((offset.double()[0, 1] - offset.double()[0, 0]).norm())
    assert float(terms.interaction) == pytest.approx(exact, rel=1e-6)


def test_the_order_of_the_draws_does_not_matter() -> None:
    draws, target = draws_and_target(3, 4, 2, 2)
    mixed = draws[:, [2, 0, 3, 1]]
    for score in (energy_score, kernel_score):
        torch.testing.assert_close(score(mixed, target), score(draws, target))


@pytest.mark.parametrize("beta", BETAS)
def test_energy_score_is_homogeneous_and_invariant_to_shift_and_rotation(beta: float) -> None:
    draws, target = draws_and_target(3, 4, 5)
    score = energy_score(draws, target, beta)
    scaled = energy_score(-2.5 * draws, -2.5 * target, beta)
    torch.testing.assert_close(scaled, 2.5**beta * score, rtol=1e-12, atol=0)
    generator = torch.Generator().manual_seed(1)
    matrix = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    rotation = torch.linalg.qr(matrix)[0]
    moved = energy_score(draws @ rotation + 3, target @ rotation + 3, beta)
    torch.testing.assert_close(moved, score, rtol=1e-12, atol=1e-12)


def test_terms_are_the_parts_of_the_score() -> None:
    draws, target = draws_and_target(2, 3, 4)
    terms = energy_terms(draws, target, 1.2)
    lam = torch.tensor([0.2, 0.9], dtype=torch.float64)
    torch.testing.assert_close(terms.score(lam), energy_score(draws, target, 1.2, lam))
    torch.testing.assert_close(terms.confinement, energy_score(draws, target, 1.2, 0.0))
    assert isinstance(terms, ScoreTerms)
    assert (energy_terms(draws[:, :1], target).interaction == 0).all()


@pytest.mark.parametrize(
    ("draws", "target"),
    [((4, 3, 2), (3, 2)), ((3, 4, 2), (3, 1)), ((3, 4, 2, 5), (3, 5, 2)), ((3,), (3,))],
)
def test_shapes_that_would_broadcast_are_refused(
    draws: tuple[int, ...], target: tuple[int, ...]
) -> None:
    for score in (energy_score, kernel_score):
        with pytest.raises(ValueError, match=r"draws .*\[B, m, \.\.\.\].*target"):
            score(torch.zeros(draws), torch.zeros(target))
