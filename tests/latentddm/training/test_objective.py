"""The objectives against their definitions, in float64: weight, times, score, targets."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from scipy.stats import kstest, norm
from torch import Tensor

from latentddm.diffusion.schedules import CosineSchedule, FlowSchedule, Schedule
from latentddm.engine.config import build
from latentddm.scores import energy_score
from latentddm.scores.energy import EnergyConfig
from latentddm.scores.kernels import KernelConfig
from latentddm.training.objective import (
    OBJECTIVES,
    TIME_MARGIN,
    DistributionalObjective,
    Objective,
    ObjectiveTerms,
    PlainObjective,
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


def ddm(draws: int = 4, **changes: object) -> DistributionalObjective:
    """An objective; what the score's config has goes to the score."""
    names = {"beta", "beta_data", "lam", "lam_data", "views"}
    score = EnergyConfig(**{key: changes.pop(key) for key in names & set(changes)})  # type: ignore[arg-type]
    return DistributionalObjective(draws=draws, score=score, **changes)  # type: ignore[arg-type]


def by_definition(draws: Tensor, x0: Tensor, t: float, objective: DistributionalObjective) -> float:
    """Eq. 14 for one sample by loops, lambda and beta linear in t, the norms as mean squares."""
    score = objective.score
    assert isinstance(score, EnergyConfig)
    beta_data = score.beta if score.beta_data is None else score.beta_data
    lam_data = score.lam if score.lam_data is None else score.lam_data
    beta, lam = (
        (1 - t) * data + t * noise
        for data, noise in ((beta_data, score.beta), (lam_data, score.lam))
    )

    def distance(x: Tensor, y: Tensor) -> float:
        square = (x - y).square()  # [C, H, W]
        whole = float(square.mean()) ** (beta / 2)
        local = float((square.mean(0) ** (beta / 2)).mean())
        return score.views.get("whole", 0) * whole + score.views.get("position", 0) * local

    m = len(draws)
    value = sum(distance(one, x0) for one in draws) / m
    for j in range(m):
        for k in set(range(m)) - {j}:
            value -= lam / (2 * m * (m - 1)) * distance(draws[j], draws[k])
    bias = objective.weighting_bias
    if bias is None:
        return value
    return value * float(sigmoid_weight(torch.tensor(t, dtype=x0.dtype), bias))


@pytest.mark.parametrize(
    "objective",
    [
        DistributionalObjective(),
        ddm(2, beta=0.1, beta_data=2.0, lam=1.0, lam_data=0.0, views={"position": 1.0}),
        ddm(3, beta=1.3, lam=0.6, views={"whole": 1.0}, weighting_bias=-1.5),
        ddm(3, views={"whole": 0.75, "position": 0.25}, weighting_bias=None),
    ],
    ids=["default", "iddm", "global", "mixed"],
)
def test_the_loss_is_the_weighted_score_of_the_paper(objective: DistributionalObjective) -> None:
    draws, x0 = latents(objective.draws)
    found = objective.terms(draws, x0, T, FLOW)
    assert found.loss.dtype == torch.float64
    expected = [
        by_definition(one, y, float(t), objective) for one, y, t in zip(draws, x0, T, strict=True)
    ]
    assert found.loss.tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("schedule", [FlowSchedule(), CosineSchedule()])
def test_plain_diffusion_is_the_weighted_mean_squared_error(schedule: Schedule) -> None:
    draws, x0 = latents(1)
    mean_square = (draws[:, 0] - x0).square().mean((1, 2, 3))
    for bias in (None, -2.0, 0.0, 1.0):
        found = PlainObjective(weighting_bias=bias).terms(draws[:, 0], x0, T, schedule).loss
        ratio = (schedule.sigma(T) / schedule.alpha(T)) ** 2
        weight = 1.0 if bias is None else 1 / (1 + math.exp(bias) * ratio)
        torch.testing.assert_close(found, weight * mean_square)


def test_plain_diffusion_is_the_limit_of_a_score_without_interaction() -> None:
    draws, x0 = latents(3)
    squared = ddm(3, beta=2.0, lam=0.0, views={"whole": 1.0})
    three = squared.terms(draws, x0, T, FLOW).loss
    ones = [PlainObjective().terms(draws[:, j], x0, T, FLOW).loss for j in range(3)]
    torch.testing.assert_close(three, torch.stack(ones).mean(0))


def test_plain_diffusion_evaluates_the_network_without_xi() -> None:
    def normal(*shape: int) -> Tensor:
        return torch.randn(5, *shape)

    assert PlainObjective().xi(normal, (3, 2, 2)) is None
    assert ddm(4).xi(normal, (3, 2, 2)).shape == (5, 4, 3, 2, 2)
    pairs = ddm(4, antithetic=True).xi(normal, (3, 2, 2))
    assert torch.equal(pairs[:, :2], -pairs[:, 2:])


def test_a_config_chooses_the_objective_and_its_score() -> None:
    assert list(OBJECTIVES)[:2] == ["ddm", "plain"]  # and the rivals, test_rivals.py
    assert build(Objective, {"kind": "plain"}, "f") == PlainObjective()
    values = {"draws": 8, "score": {"kind": "kernel", "kernel": "imq", "bandwidth": 3}}
    chosen = build(Objective, values, "f")
    assert chosen == DistributionalObjective(
        draws=8, score=KernelConfig(kernel="imq", bandwidth=3.0)
    )
    draws, x0 = latents(8)
    assert torch.isfinite(chosen.terms(draws, x0, T, FLOW).loss).all()


def test_of_antithetic_draws_only_independent_ones_interact() -> None:
    draws, x0 = latents(4)
    objective = ddm(4, beta=0.1, beta_data=1.0, antithetic=True)
    found = objective.terms(draws, x0, T, FLOW)
    pairs = [draws[:, [j, k]] for j, k in ((0, 1), (1, 2), (2, 3), (3, 0))]
    two = replace(objective, draws=2, antithetic=False)
    apart = [two.terms(pair, x0, T, FLOW).interaction for pair in pairs]
    torch.testing.assert_close(found.interaction, torch.stack(apart).mean(0))
    spread = two.terms(draws[:, :2], x0, T, FLOW).spread
    torch.testing.assert_close(found.spread, spread)


def test_with_several_targets_the_confinement_is_their_mean() -> None:
    draws, x0 = latents(3)
    other = latents(3, seed=1)[1]
    objective = ddm(3, beta=0.1, beta_data=1.0, weighting_bias=0.5)
    both = objective.terms(draws, torch.stack([x0, other], dim=1), T, FLOW).loss
    ones = [objective.terms(draws, y, T, FLOW).loss for y in (x0, other)]
    torch.testing.assert_close(both, (ones[0] + ones[1]) / 2)


def test_with_several_targets_the_squared_error_is_their_mean() -> None:
    draws, x0 = latents(1)
    other = latents(1, seed=1)[1]
    plain = PlainObjective(targets=2)
    both = plain.terms(draws[:, 0], torch.stack([x0, other], dim=1), T, FLOW).loss
    ones = [PlainObjective().terms(draws[:, 0], y, T, FLOW).loss for y in (x0, other)]
    torch.testing.assert_close(both, (ones[0] + ones[1]) / 2)


def test_the_global_loss_is_the_energy_score_over_its_dimension() -> None:
    draws, x0 = latents(4)
    objective = ddm(beta=1.2, lam=0.8, views={"whole": 1.0}, weighting_bias=None)
    found = objective.terms(draws, x0, T, FLOW).loss
    expected = energy_score(draws, x0, 1.2, 0.8) / 12**0.6
    torch.testing.assert_close(found, expected)


def test_the_excess_loss_is_half_the_weighted_energy_distance() -> None:
    """Draws 0 or 1 with chances p, data with q: E|X - Y| gives 2 (p - q)^2, exactly."""
    p, q, t, bias = 0.8, 0.3, 0.4, 0.5
    objective = ddm(2, weighting_bias=bias)
    outcomes = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 3)
    draws, x0 = outcomes[:, :2].reshape(8, 2, 1, 1, 1), outcomes[:, 2].reshape(8, 1, 1, 1)
    times = torch.full((8,), t, dtype=torch.float64)
    loss = objective.terms(draws, x0, times, FLOW).loss

    def risk(chance: float) -> float:
        ones = torch.tensor([chance, chance, q], dtype=torch.float64)
        return float(torch.where(outcomes == 1, ones, 1 - ones).prod(1) @ loss)

    weight = float(sigmoid_weight(torch.tensor(t, dtype=torch.float64), bias))
    assert risk(p) - risk(q) == pytest.approx(weight / 2 * 2 * (p - q) ** 2, rel=1e-12)


def test_weights_are_the_sigmoid_of_log_snr_less_the_bias() -> None:
    for bias in (-3.0, 0.0, 2.5):
        found = PlainObjective(weighting_bias=bias).weight(T, FLOW)
        torch.testing.assert_close(found, sigmoid_weight(T, bias), rtol=1e-12, atol=0)
    assert (PlainObjective(weighting_bias=None).weight(T, FLOW) == 1).all()
    assert float(PlainObjective(weighting_bias=0.0).weight(T[2:3], FLOW)) == 0.5  # SNR 1 at t = 1/2


def test_time_quantiles_are_those_of_the_named_distribution() -> None:
    quantiles = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    normal = torch.special.ndtri(quantiles)
    uniform = PlainObjective(time_sampling="uniform").times(normal)
    torch.testing.assert_close(uniform, quantiles, rtol=0, atol=1e-12)
    logit = PlainObjective(time_mean=0.4, time_std=1.3).times(normal)
    logs = (logit / (1 - logit)).log()
    torch.testing.assert_close(logs, 0.4 + 1.3 * normal, rtol=0, atol=1e-10)


def test_sampled_times_pass_a_kolmogorov_smirnov_test() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(20_000, generator=generator)
    uniform = PlainObjective(time_sampling="uniform").times(noise)
    assert kstest(uniform.numpy(), "uniform").pvalue > 0.01
    logit = PlainObjective(time_mean=-0.5, time_std=0.8).times(noise).double()
    logs = ((logit / (1 - logit)).log() + 0.5) / 0.8
    assert kstest(logs.numpy(), norm.cdf).pvalue > 0.01
    assert kstest(uniform.numpy(), logit.numpy()).pvalue < 1e-6  # the two do differ


def test_times_never_reach_the_ends() -> None:
    extreme = torch.tensor([-50.0, 50.0])
    for name in ("uniform", "logit_normal"):
        t = PlainObjective(time_sampling=name).times(extreme)
        assert t.tolist() == pytest.approx([TIME_MARGIN, 1 - TIME_MARGIN])
        assert torch.isfinite(FLOW.log_snr(t)).all()


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_a_share_of_the_times_is_on_the_grid_and_the_rest_as_before(share: float) -> None:
    noise = torch.randn(200_000, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    law = {"time_mean": 0.4, "time_std": 1.3}
    t = PlainObjective(grid_share=share, grid_steps=4, **law).times(noise)
    grid = torch.tensor([0.25, 0.5, 0.75, 1 - TIME_MARGIN], dtype=torch.float64)
    on_grid = (t[:, None] == grid).double()
    for found in on_grid.mean(0):
        assert abs(float(found) - share / 4) < 4 * (share / 4 / len(t)) ** 0.5
    rest = t[on_grid.sum(1) == 0]
    assert len(rest) == pytest.approx((1 - share) * len(t), rel=0.02)
    if share < 1:
        as_before = PlainObjective(**law).times(noise)
        quantiles = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
        torch.testing.assert_close(
            rest.quantile(quantiles), as_before.quantile(quantiles), rtol=0.02, atol=0
        )


@pytest.mark.parametrize("beta", [0.1, 1.0, 2.0])
def test_the_two_views_agree_in_scale(beta: float) -> None:
    """Both are mean squares: equal where every difference has one size, close for noise."""
    x0 = torch.zeros(4, 64, 8, 8, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(4, 2, 64, 8, 8, generator=generator, dtype=torch.float64)
    for draws, tolerance in ((0.3 * noise.sign(), 1e-12), (0.3 * noise, 0.02)):
        one, other = (
            ddm(2, beta=beta, views={view: 1.0}).terms(draws, x0, T, FLOW)
            for view in ("whole", "position")
        )
        torch.testing.assert_close(one.confinement, other.confinement, rtol=tolerance, atol=0)
    expected = torch.full((4,), 0.3**beta, dtype=torch.float64)
    torch.testing.assert_close(one.confinement, expected, rtol=0.06, atol=0)


def test_the_logged_figures_are_those_of_their_definitions() -> None:
    """Spread: the root mean square, over a sample's elements, of the draws' standard deviation."""
    draws, x0 = latents(4)
    draws.requires_grad_()
    terms = ddm(views={"whole": 1.0}).terms(draws, x0, T, FLOW)
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
    terms = ddm(beta=0.1, beta_data=2.0).terms(draws, x0.float(), T.float(), FLOW)
    assert (terms.interaction == 0).all()
    assert (terms.spread == 0).all()
    (gradient,) = torch.autograd.grad(terms.loss.mean(), draws)
    assert torch.isfinite(gradient).all()
    assert (gradient != 0).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_score_of_a_half_precision_network_is_taken_in_float32(dtype: torch.dtype) -> None:
    draws, x0 = latents(4)
    draws, x0 = draws.to(dtype), x0.to(dtype)
    found = ddm().terms(draws, x0, T, FLOW)
    assert {value.dtype for value in found} == {torch.float32}
    exact = ddm().terms(draws.double(), x0.double(), T, FLOW)
    for one, other in zip(found, exact, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-6)


def test_every_term_is_one_value_per_sample() -> None:
    draws, x0 = latents(2)
    for terms in (ddm(2).terms(draws, x0, T, FLOW), PlainObjective().terms(x0, x0, T, FLOW)):
        assert isinstance(terms, ObjectiveTerms)
        assert {value.shape for value in terms} == {(4,)}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"grid_share": 1.1}, "grid_share"),
        ({"grid_steps": 0}, "grid_steps"),
        ({"targets": 0}, "targets"),
        ({"draws": 1}, "plain"),
        ({"draws": 2, "antithetic": True}, "4 or more"),
        ({"draws": 5, "antithetic": True}, "4 or more"),
        ({"draws": 0}, "draws is 0"),
    ],
)
def test_numbers_that_make_no_loss_are_refused(change: dict[str, float], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        DistributionalObjective(**change)
