"""The bridge and the predictions hold their mathematics to rounding, in float64."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from torch import Tensor

from latentddm.diffusion.process import (
    Prediction,
    bridge_step,
    corrupt,
    edm_coefficients,
    from_x0,
    posterior_weights,
    to_x0,
)
from latentddm.diffusion.schedules import (
    SCHEDULES,
    CosineSchedule,
    FlowSchedule,
    Schedule,
    make_schedule,
)

FLOW, COSINE = FlowSchedule(), CosineSchedule()
ALL = [pytest.param(make_schedule(name), id=name) for name in SCHEDULES]
CHURNS = [0.0, 0.1, 0.5, 0.9, 1.0]
TIMES = [0.0, 0.003, 0.2, 0.5, 0.77, 0.999, 1.0]
STEPS = [(t, s) for t, s in product(TIMES, TIMES) if s < t]


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def levels(schedule: Schedule, t: float) -> tuple[float, float]:
    return float(schedule.alpha(scalar(t))), float(schedule.sigma(scalar(t)))


def coefficients(
    t: float, s: float, churn: float, schedule: Schedule = FLOW
) -> tuple[float, float, float]:
    """The bridge is affine: its factors of x_t, x_0 and the noise, read off unit vectors."""
    x_t, x0, noise = torch.eye(3, dtype=torch.float64)
    return tuple(bridge_step(x_t, x0, t, s, noise, schedule, churn).tolist())


def paper(
    t: float, s: float, churn: float, schedule: Schedule = FLOW, power: int = 1
) -> tuple[float, float, float]:
    """The paper's mu and Sigma (eq. 4) as the same three factors; power 2 is the ports' mistake."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = levels(schedule, t), levels(schedule, s)

    def r(i: int, j: int) -> float:
        return (alpha_t / alpha_s) ** i * (sigma_s / sigma_t) ** (j * power)

    e = churn**2
    variance = sigma_s**2 * (1 - (e * r(1, 1) + 1 - e) ** 2)
    return (
        e * r(1, 2) + (1 - e) * r(0, 1),
        alpha_s * (1 - e * r(2, 2) - (1 - e) * r(1, 1)),
        math.sqrt(max(variance, 0.0)),
    )


def marginal_error(
    factors: tuple[float, float, float], t: float, s: float, schedule: Schedule = FLOW
) -> float:
    """How far mean and variance of x_s are from those of a corrupted x_0, whose own are known."""
    mean, variance = 1.7, 0.6
    (alpha_t, sigma_t), (alpha_s, sigma_s) = levels(schedule, t), levels(schedule, s)
    of_x_t, of_x0, of_noise = factors
    of_data = of_x_t * alpha_t + of_x0
    mean_error = of_data * mean - alpha_s * mean
    found = of_data**2 * variance + (of_x_t * sigma_t) ** 2 + of_noise**2
    return max(abs(mean_error), abs(found - (alpha_s**2 * variance + sigma_s**2)))


@pytest.mark.parametrize("schedule", ALL)
@pytest.mark.parametrize("churn", CHURNS)
def test_bridge_keeps_mean_and_variance(churn: float, schedule: Schedule) -> None:
    for t, s in STEPS:
        factors = coefficients(t, s, churn, schedule)
        assert marginal_error(factors, t, s, schedule) < 1e-12, (t, s)


@pytest.mark.parametrize("schedule", ALL)
@pytest.mark.parametrize("churn", CHURNS)
def test_bridge_is_the_papers_mean_and_variance(churn: float, schedule: Schedule) -> None:
    for t, s in STEPS:
        found, expected = coefficients(t, s, churn, schedule), paper(t, s, churn, schedule)
        assert found[:2] == pytest.approx(expected[:2], abs=1e-12), (t, s)
        assert found[2] ** 2 == pytest.approx(expected[2] ** 2, abs=1e-12), (t, s)


@pytest.mark.parametrize("schedule", ALL)
def test_ratios_of_sigma_squared_would_break_the_variance(schedule: Schedule) -> None:
    """The check above refuses the variant that public ports have."""
    assert marginal_error(paper(0.77, 0.5, 1.0, schedule), 0.77, 0.5, schedule) < 1e-12
    for churn in CHURNS:
        wrong = paper(0.77, 0.5, churn, schedule, power=2)
        assert marginal_error(wrong, 0.77, 0.5, schedule) > 0.005


@pytest.mark.parametrize("schedule", ALL)
def test_bridge_is_affine_in_its_inputs(schedule: Schedule) -> None:
    generator = torch.Generator().manual_seed(0)
    x_t, x0, noise = torch.randn(3, 5, 2, 3, generator=generator, dtype=torch.float64)
    a, b, c = coefficients(0.8, 0.3, 0.5, schedule)
    found = bridge_step(x_t, x0, 0.8, 0.3, noise, schedule, churn=0.5)
    torch.testing.assert_close(found, a * x_t + b * x0 + c * noise, rtol=0, atol=1e-14)


def test_no_churn_is_an_euler_step_of_the_flow() -> None:
    for t, s in STEPS:
        h = (s - t) / t  # x_s = x_t + (s - t) v, v = (x_t - x_0) / t
        assert coefficients(t, s, 0.0) == pytest.approx((1 + h, -h, 0.0), abs=1e-14)


@pytest.mark.parametrize("schedule", ALL)
def test_full_churn_is_the_posterior_of_gaussian_conditioning(schedule: Schedule) -> None:
    """q(x_s | x_0, x_t): prior N(alpha_s x_0, sigma_s^2), seen through x_t = a x_s + noise."""
    for t, s in STEPS:
        (alpha_t, sigma_t), (alpha_s, sigma_s) = levels(schedule, t), levels(schedule, s)
        a = alpha_t / alpha_s
        gain = a * sigma_s**2 / sigma_t**2  # Cov(x_s, x_t | x_0) / Var(x_t | x_0)
        expected = (gain, alpha_s - gain * alpha_t, sigma_s**2 * (1 - gain * a))
        of_x_t, of_x0, of_noise = coefficients(t, s, 1.0, schedule)
        assert (of_x_t, of_x0, of_noise**2) == pytest.approx(expected, abs=1e-12), (t, s)


@pytest.mark.parametrize("schedule", ALL)
def test_full_churn_is_the_first_order_stochastic_dpm_solver(schedule: Schedule) -> None:
    """SDE-DPM-Solver++(1): h = lambda_s - lambda_t, lambda = log(alpha / sigma)."""
    for t, s in STEPS:
        if s > 0 and t < 1:
            (alpha_t, sigma_t), (alpha_s, sigma_s) = levels(schedule, t), levels(schedule, s)
            h = math.log(alpha_s / sigma_s) - math.log(alpha_t / sigma_t)
            loss = -math.expm1(-2 * h)
            expected = (sigma_s / sigma_t * math.exp(-h), alpha_s * loss, sigma_s * loss**0.5)
            assert coefficients(t, s, 1.0, schedule) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("churn", [0.0, 0.5, 1.0])
def test_bridge_agrees_with_the_ddim_of_diffusers(churn: float) -> None:
    """eta = sqrt(Sigma(churn) / Sigma(1)) of DDIMScheduler, on a variance-preserving schedule."""
    from diffusers import DDIMScheduler

    generator = torch.Generator().manual_seed(0)
    x_t, x0, noise = torch.randn(3, 2, 4, 3, 3, generator=generator, dtype=torch.float64)
    scheduler = DDIMScheduler(num_train_timesteps=1000, clip_sample=False)
    times = torch.arange(1, 1001, dtype=torch.float64) / 1001
    scheduler.alphas_cumprod = COSINE.alpha(times).square()
    scheduler.set_timesteps(10)
    for timestep in (900, 500, 100):
        t, s = float(times[timestep]), float(times[timestep - 100])
        alpha_t, sigma_t = levels(COSINE, t)
        expected = scheduler.step(
            (x_t - alpha_t * x0) / sigma_t,
            timestep,
            x_t,
            eta=paper(t, s, churn, COSINE)[2] / paper(t, s, 1.0, COSINE)[2],
            variance_noise=noise,
        ).prev_sample
        found = bridge_step(x_t, x0, t, s, noise, COSINE, churn)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("schedule", ALL)
@pytest.mark.parametrize("churn", [0.0, 1.0])
def test_two_steps_are_one_step_in_distribution(churn: float, schedule: Schedule) -> None:
    """Both ends of the churn are consistent processes, so a stop on the way changes nothing."""
    a_1, b_1, c_1 = coefficients(0.9, 0.6, churn, schedule)
    a_2, b_2, c_2 = coefficients(0.6, 0.2, churn, schedule)
    a, b, c = coefficients(0.9, 0.2, churn, schedule)
    assert (a_1 * a_2, a_2 * b_1 + b_2) == pytest.approx((a, b), abs=1e-14)
    assert (a_2 * c_1) ** 2 + c_2**2 == pytest.approx(c**2, abs=1e-14)


@pytest.mark.parametrize("schedule", ALL)
@pytest.mark.parametrize("churn", CHURNS)
def test_bridge_is_exact_at_the_ends(churn: float, schedule: Schedule) -> None:
    """At s = 0 it returns x_0 to the bit; at t = 1 it mixes the old noise with the fresh one."""
    generator = torch.Generator().manual_seed(0)
    x_t, x0, noise = torch.randn(3, 4, 3, generator=generator, dtype=torch.float64)
    for t in (1.0, 0.5, 1e-6):
        assert torch.equal(bridge_step(x_t, x0, t, 0.0, noise, schedule, churn), x0)
    rho, (alpha, sigma) = 1 - churn**2, levels(schedule, 0.6)
    expected = alpha * x0 + sigma * (rho * x_t + math.sqrt(1 - rho**2) * noise)
    found = bridge_step(x_t, x0, 1.0, 0.6, noise, schedule, churn)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("schedule", ALL)
@pytest.mark.parametrize("shape", [(3,), (3, 2), (3, 4, 5, 2)])
def test_a_time_for_each_sample_agrees_with_one_time(
    shape: tuple[int, ...], schedule: Schedule
) -> None:
    generator = torch.Generator().manual_seed(0)
    x_t, x0, noise = torch.randn(3, *shape, generator=generator, dtype=torch.float64)
    t, s = scalar(0.9).repeat(3), scalar(0.4).repeat(3)
    t[1], s[1] = 1.0, 0.0
    together = bridge_step(x_t, x0, t, s, noise, schedule, churn=0.7)
    mixed = bridge_step(x_t, x0, t, 0.0, noise, schedule, churn=0.7)
    for i, one in enumerate(together):
        inputs = x_t[i : i + 1], x0[i : i + 1]
        for time in (float(t[i]), t[i]):
            alone = bridge_step(*inputs, time, s[i], noise[i : i + 1], schedule, churn=0.7)
            assert torch.equal(alone[0], one)
    assert torch.equal(mixed, x0)
    corrupted = corrupt(x0, t, noise, schedule)
    for i, one in enumerate(corrupted):
        alone = corrupt(x0[i : i + 1], float(t[i]), noise[i : i + 1], schedule)
        assert torch.equal(one, alone[0])


@pytest.mark.parametrize("schedule", ALL)
def test_a_thousand_small_steps_keep_the_variance_in_float32(schedule: Schedule) -> None:
    for churn in (0.0, 0.3, 1.0):
        variance = 1.0  # of x_t about alpha_t x_0
        for k in range(1000, 1, -1):
            t, s = k / 1000, (k - 1) / 1000
            x_t, x0, noise = torch.eye(3)
            a, _, c = bridge_step(x_t, x0, t, s, noise, schedule, churn).tolist()
            variance = a**2 * variance + c**2
        assert variance == pytest.approx(levels(schedule, 0.001)[1] ** 2, rel=1e-3)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [(FLOW, [0.7, 0.3]), (COSINE, [math.cos(0.15 * math.pi), math.sin(0.15 * math.pi)])],
)
def test_corrupt_has_the_schedules_mean_and_noise(
    schedule: Schedule, expected: list[float]
) -> None:
    x0, noise = torch.eye(2, dtype=torch.float64)
    assert corrupt(x0, 0.3, noise, schedule).tolist() == pytest.approx(expected, abs=1e-15)
    assert corrupt(x0, 0.0, noise, schedule).tolist() == [1.0, 0.0]
    assert corrupt(x0, 1.0, noise, schedule).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("schedule", ALL)
def test_posterior_weights_are_those_of_bayes(schedule: Schedule) -> None:
    generator = torch.Generator().manual_seed(0)
    data, x_t = (torch.randn(n, 2, 3, generator=generator, dtype=torch.float64) for n in (5, 4))
    t = torch.tensor([0.3, 0.5, 0.9, 1.0], dtype=torch.float64)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    gaps = (x_t[:, None] - alpha[:, None, None, None] * data).square().sum((2, 3))
    likelihood = torch.exp(-gaps / (2 * sigma[:, None] ** 2))
    expected = likelihood / likelihood.sum(1, keepdim=True)
    torch.testing.assert_close(posterior_weights(x_t, t, data, schedule), expected)


@pytest.mark.parametrize("schedule", ALL)
@pytest.mark.parametrize(
    ("prediction", "sigma_data"), [("x0", 1), ("eps", 1), ("v", 1), ("edm", 1), ("edm", 0.1)]
)
def test_predictions_return_after_a_round_trip(
    prediction: Prediction, sigma_data: float, schedule: Schedule
) -> None:
    generator = torch.Generator().manual_seed(0)
    x_t, value = torch.randn(2, 6, 3, 2, 2, generator=generator, dtype=torch.float64)
    t = torch.tensor([0.05, 0.2, 0.4, 0.6, 0.8, 0.95], dtype=torch.float64)
    for time in (t, 0.3):
        as_x0 = to_x0(value, x_t, time, prediction, schedule, sigma_data)
        back = from_x0(as_x0, x_t, time, prediction, schedule, sigma_data)
        torch.testing.assert_close(back, value, rtol=0, atol=1e-12)
        as_output = from_x0(value, x_t, time, prediction, schedule, sigma_data)
        back = to_x0(as_output, x_t, time, prediction, schedule, sigma_data)
        torch.testing.assert_close(back, value, rtol=0, atol=1e-12)


@pytest.mark.parametrize("schedule", ALL)
def test_predictions_are_the_quantities_of_their_names(schedule: Schedule) -> None:
    """The outputs that belong to a known x_0 and noise are x_0, the noise, and noise - x_0."""
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
    t = torch.tensor([0.05, 0.3, 0.5, 0.7, 0.95], dtype=torch.float64)
    x_t = corrupt(x0, t, noise, schedule)
    outputs: dict[Prediction, Tensor] = {"x0": x0, "eps": noise, "v": noise - x0}
    for prediction, output in outputs.items():
        found = from_x0(x0, x_t, t, prediction, schedule)
        torch.testing.assert_close(found, output, rtol=0, atol=1e-12)
        found = to_x0(output, x_t, t, prediction, schedule)
        torch.testing.assert_close(found, x0, rtol=0, atol=1e-12)


@pytest.mark.parametrize("schedule", ALL)
@pytest.mark.parametrize("sigma_data", [0.05, 0.3, 1.0])
def test_the_output_of_edm_has_unit_variance(sigma_data: float, schedule: Schedule) -> None:
    """For independent x_0 and noise of unit variance: each enters the output linearly."""
    x0, noise = torch.eye(2, dtype=torch.float64)
    for t in (0.01, 0.1, 0.5, 0.9, 1.0):
        x_t = corrupt(x0, t, noise, schedule)
        output = from_x0(x0, x_t, t, "edm", schedule, sigma_data)
        assert float(output.square().sum()) == pytest.approx(1, abs=1e-12)


def test_edm_at_unit_variance_is_the_v_of_variance_preserving_diffusion() -> None:
    """alpha eps - sigma x_0 (arXiv 2202.00512), at both ends too."""
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64)
    t = torch.tensor([0.05, 0.3, 0.8, 1.0], dtype=torch.float64)
    alpha, sigma = COSINE.alpha(t)[:, None], COSINE.sigma(t)[:, None]
    x_t = corrupt(x0, t, noise, COSINE)
    found = from_x0(x0, x_t, t, "edm", COSINE)
    torch.testing.assert_close(found, alpha * noise - sigma * x0, rtol=0, atol=1e-12)
    assert torch.equal(to_x0(found, x0, 0.0, "edm", COSINE), x0)


def test_edm_takes_x_t_as_it_is_only_where_the_noise_is_below_the_finest_detail() -> None:
    t = torch.tensor([0.0, 0.01, 0.5, 1.0], dtype=torch.float64)
    skip, out = edm_coefficients(t, FLOW, sigma_data=0.1)
    # by hand: .99 * .01 / (.99^2 * .01 + .0001), and .5 * .01 / (.25 * .01 + .25)
    assert skip.tolist() == pytest.approx([1, 0.0099 / 0.009901, 0.005 / 0.2525, 0], abs=1e-12)
    assert out[[0, 3]].tolist() == pytest.approx([0, 1], abs=1e-12)
    assert out[1] < 0.02
    assert out[2] > 0.99


@pytest.mark.parametrize("schedule", ALL)
@pytest.mark.parametrize("t", [0.0, 1.0])
def test_v_gives_x0_exactly_at_both_ends(t: float, schedule: Schedule) -> None:
    """Sampling starts at t = 1, where no x_0 follows from eps; from v it must."""
    x0, noise = torch.tensor([[0.5], [-2.0]], dtype=torch.float64)
    x_t = corrupt(x0, t, noise, schedule)
    assert float(to_x0(noise - x0, x_t, t, "v", schedule)) == pytest.approx(0.5, abs=1e-15)


def test_an_unknown_prediction_is_refused() -> None:
    x = torch.zeros(1, 2)
    for convert in (to_x0, from_x0):
        with pytest.raises(ValueError, match=r"x0, eps, v, edm.*'epsilon'"):
            convert(x, x, 0.5, "epsilon", FLOW)  # type: ignore[arg-type]
