"""One objective: plain diffusion and DDM are the same code with other numbers."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from scipy.stats import kstest, norm
from torch import Tensor

from latentddm.diffusion.process import corrupt
from latentddm.diffusion.schedules import FlowSchedule
from latentddm.scores import energy_score
from latentddm.training.objective import (
    TIME_MARGIN,
    Objective,
    ObjectiveTerms,
    draw_targets,
    objective_terms,
)

FLOW = FlowSchedule()
T = torch.tensor([0.02, 0.3, 0.5, 0.9], dtype=torch.float64)


def latents(m: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randn(4, m, 3, 2, 2, generator=generator, dtype=torch.float64)
    return draws, torch.randn(4, 3, 2, 2, generator=generator, dtype=torch.float64)


def sigmoid_weight(t: Tensor, bias: float) -> Tensor:
    """1 / (1 + exp(b - log(alpha^2 / sigma^2))) with alpha = 1 - t, sigma = t."""
    return 1 / (1 + math.exp(bias) * t**2 / (1 - t) ** 2)


def by_definition(draws: Tensor, x0: Tensor, t: float, objective: Objective) -> float:
    """Eq. 14 for one sample by loops, lambda and beta linear in t, the norms as mean squares."""
    beta_data = objective.beta if objective.beta_data is None else objective.beta_data
    lam_data = objective.lam if objective.lam_data is None else objective.lam_data
    beta, lam = (
        (1 - t) * data + t * noise
        for data, noise in ((beta_data, objective.beta), (lam_data, objective.lam))
    )

    def distance(x: Tensor, y: Tensor) -> float:
        square = (x - y).square()  # [C, H, W]
        whole = float(square.mean()) ** (beta / 2)
        local = float((square.mean(0) ** (beta / 2)).mean())
        return (1 - objective.position_share) * whole + objective.position_share * local

    m = len(draws)
    score = sum(distance(one, x0) for one in draws) / m
    for j in range(m):
        for k in set(range(m)) - {j}:
            score -= lam / (2 * m * (m - 1)) * distance(draws[j], draws[k])
    bias = objective.weighting_bias
    return (
        score
        if bias is None
        else score * float(sigmoid_weight(torch.tensor(t, dtype=x0.dtype), bias))
    )


@pytest.mark.parametrize(
    "objective",
    [
        Objective(),
        Objective(draws=2, beta=0.1, beta_data=2.0, lam=1.0, lam_data=0.0, position_share=1.0),
        Objective(draws=3, beta=1.3, lam=0.6, position_share=0.0, weighting_bias=-1.5),
        Objective(draws=3, position_share=0.25, weighting_bias=None),
        Objective.plain_diffusion(),
        Objective.plain_diffusion(weighting_bias=None),
    ],
    ids=["default", "iddm", "global", "mixed", "plain", "plain-unweighted"],
)
def test_the_loss_is_the_weighted_score_of_the_paper(objective: Objective) -> None:
    draws, x0 = latents(objective.draws)
    found = objective_terms(draws, x0, T, objective, FLOW)
    assert found.loss.dtype == torch.float64
    expected = [
        by_definition(one, y, float(t), objective) for one, y, t in zip(draws, x0, T, strict=True)
    ]
    assert found.loss.tolist() == pytest.approx(expected, abs=1e-12)


def test_plain_diffusion_is_the_weighted_mean_squared_error() -> None:
    draws, x0 = latents(1)
    mean_square = (draws[:, 0] - x0).square().mean((1, 2, 3))
    for bias in (-2.0, 0.0, 1.0):
        objective = Objective.plain_diffusion(weighting_bias=bias)
        found = objective_terms(draws, x0, T, objective, FLOW).loss
        torch.testing.assert_close(found, sigmoid_weight(T, bias) * mean_square)


def test_plain_diffusion_is_an_objective_with_other_numbers() -> None:
    plain = Objective.plain_diffusion(time_mean=0.7)
    assert plain == Objective(draws=1, beta=2.0, lam=0.0, position_share=0.0, time_mean=0.7)
    draws, x0 = latents(3)
    objective = Objective(draws=3, beta=2.0, lam=0.0, position_share=0.0)
    three = objective_terms(draws, x0, T, objective, FLOW).loss
    ones = [objective_terms(draws[:, j : j + 1], x0, T, plain, FLOW).loss for j in range(3)]
    torch.testing.assert_close(three, torch.stack(ones).mean(0))


def test_of_antithetic_draws_only_independent_ones_interact() -> None:
    draws, x0 = latents(4)
    objective = Objective(draws=4, beta=0.1, beta_data=1.0, antithetic=True)
    found = objective_terms(draws, x0, T, objective, FLOW)
    pairs = [draws[:, [j, k]] for j, k in ((0, 1), (1, 2), (2, 3), (3, 0))]
    two = replace(objective, draws=2, antithetic=False)
    apart = [objective_terms(pair, x0, T, two, FLOW).interaction for pair in pairs]
    torch.testing.assert_close(found.interaction, torch.stack(apart).mean(0))
    spread = objective_terms(draws[:, :2], x0, T, two, FLOW).spread
    torch.testing.assert_close(found.spread, spread)


def test_with_several_targets_the_confinement_is_their_mean() -> None:
    draws, x0 = latents(3)
    other = latents(3, seed=1)[1]
    objective = Objective(draws=3, beta=0.1, beta_data=1.0, weighting_bias=0.5)
    both = objective_terms(draws, torch.stack([x0, other], dim=1), T, objective, FLOW).loss
    ones = [objective_terms(draws, y, T, objective, FLOW).loss for y in (x0, other)]
    torch.testing.assert_close(both, (ones[0] + ones[1]) / 2)


@pytest.mark.parametrize("t", [0.3, 0.7, 1.0])
def test_targets_from_the_batch_have_exactly_the_law_of_x0_given_x_t(t: float) -> None:
    """In small batches, where an inexact choice would show: all moments of (x_0, x_t) stay."""
    generator = torch.Generator().manual_seed(0)
    batches, size = 40_000, 3
    chosen = torch.rand(batches, size, 1, 1, 1, generator=generator) < 0.2
    x0 = torch.where(chosen, 2.0, -0.5).double()
    noise = torch.randn(x0.shape, generator=generator, dtype=torch.float64)
    x_t = corrupt(x0.flatten(0, 1), t, noise.flatten(0, 1), FLOW).reshape(x0.shape)
    uniform = torch.rand(batches, size, 1, generator=generator, dtype=torch.float64)
    times = torch.full((size,), t, dtype=torch.float64)
    targets = torch.stack(
        [draw_targets(x_t[i], times, x0[i], uniform[i], FLOW)[:, 0] for i in range(batches)]
    )
    assert (targets != x0).double().mean() > 0.001  # it is not x_0 itself that comes back
    for moment in (torch.ones_like, torch.as_tensor, torch.square, torch.cos):
        error = (targets - x0) * moment(x_t)  # of mean zero if the laws are the same
        per_batch = error.flatten(1).mean(1)
        assert abs(per_batch.mean()) < 4 * per_batch.std() / batches**0.5


def test_at_little_noise_all_targets_are_x0_itself() -> None:
    _, x0 = latents(1)
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    t = torch.full((4,), 0.02, dtype=torch.float64)
    uniform = torch.linspace(0, 0.999, 12, dtype=torch.float64).reshape(4, 3)
    targets = draw_targets(corrupt(x0, t, noise, FLOW), t, x0, uniform, FLOW)
    assert torch.equal(targets, x0[:, None].expand(-1, 3, -1, -1, -1))


def test_the_global_loss_is_the_energy_score_over_its_dimension() -> None:
    draws, x0 = latents(4)
    objective = Objective(beta=1.2, lam=0.8, position_share=0.0, weighting_bias=None)
    found = objective_terms(draws, x0, T, objective, FLOW).loss
    expected = energy_score(draws, x0, 1.2, 0.8) / 12**0.6
    torch.testing.assert_close(found, expected)


def test_the_excess_loss_is_half_the_weighted_energy_distance() -> None:
    """Draws 0 or 1 with chances p, data with q: E|X - Y| gives 2 (p - q)^2, exactly."""
    p, q, t, bias = 0.8, 0.3, 0.4, 0.5
    objective = Objective(draws=2, weighting_bias=bias)
    outcomes = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 3)
    draws, x0 = outcomes[:, :2].reshape(8, 2, 1, 1, 1), outcomes[:, 2].reshape(8, 1, 1, 1)
    times = torch.full((8,), t, dtype=torch.float64)
    loss = objective_terms(draws, x0, times, objective, FLOW).loss

    def risk(chance: float) -> float:
        ones = torch.tensor([chance, chance, q], dtype=torch.float64)
        return float(torch.where(outcomes == 1, ones, 1 - ones).prod(1) @ loss)

    weight = float(sigmoid_weight(torch.tensor(t, dtype=torch.float64), bias))
    assert risk(p) - risk(q) == pytest.approx(weight / 2 * 2 * (p - q) ** 2, rel=1e-12)


def test_weights_are_the_sigmoid_of_log_snr_less_the_bias() -> None:
    for bias in (-3.0, 0.0, 2.5):
        found = Objective(weighting_bias=bias).weight(T, FLOW)
        torch.testing.assert_close(found, sigmoid_weight(T, bias), rtol=1e-12, atol=0)
    assert (Objective(weighting_bias=None).weight(T, FLOW) == 1).all()
    assert float(Objective(weighting_bias=0.0).weight(T[2:3], FLOW)) == 0.5  # SNR 1 at t = 1/2


def test_beta_and_lambda_run_from_data_to_noise() -> None:
    """iDDM: lambda = lambda_max t, beta = 2 - (2 - beta_min) t."""
    t = torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64)
    objective = Objective(beta=0.1, beta_data=2.0, lam=0.8, lam_data=0.0)
    assert objective.beta_at(t).tolist() == pytest.approx([2.0, 2 - 1.9 * 0.25, 0.1], abs=1e-12)
    assert objective.lam_at(t).tolist() == pytest.approx([0.0, 0.2, 0.8], abs=1e-12)
    constant = Objective(beta=1.3, lam=0.6)
    assert (constant.beta_at(t), constant.lam_at(t)) == (1.3, 0.6)


def test_time_quantiles_are_those_of_the_named_law() -> None:
    quantiles = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    normal = torch.special.ndtri(quantiles)
    uniform = Objective(time_sampling="uniform").times(normal)
    torch.testing.assert_close(uniform, quantiles, rtol=0, atol=1e-12)
    logit = Objective(time_mean=0.4, time_std=1.3).times(normal)
    logs = (logit / (1 - logit)).log()
    torch.testing.assert_close(logs, 0.4 + 1.3 * normal, rtol=0, atol=1e-10)


def test_sampled_times_pass_a_kolmogorov_smirnov_test() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(20_000, generator=generator)
    uniform = Objective(time_sampling="uniform").times(noise)
    assert kstest(uniform.numpy(), "uniform").pvalue > 0.01
    logit = Objective(time_mean=-0.5, time_std=0.8).times(noise).double()
    logs = ((logit / (1 - logit)).log() + 0.5) / 0.8
    assert kstest(logs.numpy(), norm.cdf).pvalue > 0.01
    assert kstest(uniform.numpy(), logit.numpy()).pvalue < 1e-6  # the two laws do differ


def test_times_never_reach_the_ends() -> None:
    extreme = torch.tensor([-50.0, 50.0])
    for law in ("uniform", "logit_normal"):
        t = Objective(time_sampling=law).times(extreme)
        assert t.tolist() == pytest.approx([TIME_MARGIN, 1 - TIME_MARGIN])
        assert torch.isfinite(FLOW.log_snr(t)).all()


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_a_share_of_the_times_is_on_the_grid_and_the_rest_as_before(share: float) -> None:
    noise = torch.randn(200_000, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    law = {"time_mean": 0.4, "time_std": 1.3}
    t = Objective(grid_share=share, grid_steps=4, **law).times(noise)
    grid = torch.tensor([0.25, 0.5, 0.75, 1 - TIME_MARGIN], dtype=torch.float64)
    on_grid = (t[:, None] == grid).double()
    for found in on_grid.mean(0):
        assert abs(float(found) - share / 4) < 4 * (share / 4 / len(t)) ** 0.5
    rest = t[on_grid.sum(1) == 0]
    assert len(rest) == pytest.approx((1 - share) * len(t), rel=0.02)
    if share < 1:
        as_before = Objective(**law).times(noise)
        quantiles = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
        torch.testing.assert_close(
            rest.quantile(quantiles), as_before.quantile(quantiles), rtol=0.02, atol=0
        )


@pytest.mark.parametrize("beta", [0.1, 1.0, 2.0])
def test_the_two_norms_agree_in_scale(beta: float) -> None:
    """Both are mean squares: equal where every difference has one size, close for noise."""
    x0 = torch.zeros(4, 64, 8, 8, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(4, 2, 64, 8, 8, generator=generator, dtype=torch.float64)
    for draws, tolerance in ((0.3 * noise.sign(), 1e-12), (0.3 * noise, 0.02)):
        one, other = (
            objective_terms(draws, x0, T, Objective(draws=2, beta=beta, position_share=share), FLOW)
            for share in (0.0, 1.0)
        )
        torch.testing.assert_close(one.confinement, other.confinement, rtol=tolerance, atol=0)
    expected = torch.full((4,), 0.3**beta, dtype=torch.float64)
    torch.testing.assert_close(one.confinement, expected, rtol=0.06, atol=0)


def test_what_is_watched_is_what_it_says() -> None:
    """Spread: the root mean square, over a sample's elements, of the draws' standard deviation."""
    draws, x0 = latents(4)
    draws.requires_grad_()
    terms = objective_terms(draws, x0, T, Objective(position_share=0.0), FLOW)
    with torch.no_grad():
        deviation = draws - draws.mean(1, keepdim=True)
        variance = deviation.square().sum(1) / 3  # [B, C, H, W]
        torch.testing.assert_close(terms.spread, variance.mean((1, 2, 3)).sqrt())
        pairs = [
            (draws[:, j] - draws[:, k]).square().mean((1, 2, 3)).sqrt()
            for j in range(4)
            for k in range(4)
            if j != k
        ]
        torch.testing.assert_close(terms.interaction, torch.stack(pairs).mean(0))
    assert terms.loss.requires_grad
    assert not any(getattr(terms, name).requires_grad for name in terms._fields if name != "loss")


def test_a_network_that_ignores_xi_shows_no_interaction_and_still_learns() -> None:
    draws, x0 = latents(1)
    draws = draws.float().expand(-1, 4, -1, -1, -1).clone().requires_grad_()
    objective = Objective(beta=0.1, beta_data=2.0)
    terms = objective_terms(draws, x0.float(), T.float(), objective, FLOW)
    assert (terms.interaction == 0).all()
    assert (terms.spread == 0).all()
    (gradient,) = torch.autograd.grad(terms.loss.mean(), draws)
    assert torch.isfinite(gradient).all()
    assert (gradient != 0).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_score_of_a_half_precision_network_is_taken_in_float32(dtype: torch.dtype) -> None:
    draws, x0 = latents(4)
    draws, x0 = draws.to(dtype), x0.to(dtype)
    found = objective_terms(draws, x0, T, Objective(), FLOW)
    assert {value.dtype for value in found} == {torch.float32}
    exact = objective_terms(draws.double(), x0.double(), T, Objective(), FLOW)
    for one, other in zip(found, exact, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-6)


def test_every_term_is_one_value_per_sample() -> None:
    for m in (1, 2):
        draws, x0 = latents(m)
        terms = objective_terms(draws, x0, T, Objective(draws=m, lam=m - 1), FLOW)
        assert isinstance(terms, ObjectiveTerms)
        assert {value.shape for value in terms} == {(4,)}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"beta": 0.0}, "beta must lie"),
        ({"beta_data": 2.5}, "beta_data must lie"),
        ({"lam": 1.5}, "lam must lie"),
        ({"position_share": -0.1}, "position_share must lie"),
        ({"grid_share": 1.1}, "grid_share must lie"),
        ({"grid_steps": 0}, "grid_steps must be"),
        ({"targets": 0}, "targets must be at least 1"),
        ({"draws": 1}, "needs two or more"),
        ({"draws": 2, "antithetic": True}, "antithetic pairs need an even number of 4 or more"),
        ({"draws": 5, "antithetic": True}, "antithetic pairs need an even number of 4 or more"),
        ({"draws": 0, "lam": 0.0}, "draws is 0"),
    ],
)
def test_numbers_that_make_no_loss_are_refused(change: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Objective(**change)
