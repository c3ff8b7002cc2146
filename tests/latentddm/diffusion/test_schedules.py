"""A schedule runs from data to noise, exactly so at both ends, and its clock can be inverted."""

from __future__ import annotations

import math

import pytest
import torch

from latentddm.diffusion.process import posterior_weights
from latentddm.diffusion.schedules import (
    SCHEDULES,
    CosineSchedule,
    FlowSchedule,
    Schedule,
    flow_time,
    make_schedule,
    time_of_flow,
)

ALL = [pytest.param(make_schedule(name), id=name) for name in SCHEDULES]
INNER = torch.linspace(0, 1, 1001, dtype=torch.float64)[1:-1]


def test_a_schedule_is_found_by_its_name_and_another_name_is_refused() -> None:
    assert {name: make_schedule(name).name for name in SCHEDULES} == {
        "flow": "flow",
        "cosine": "cosine",
    }
    with pytest.raises(ValueError, match=r"flow, cosine.*'linear'"):
        make_schedule("linear")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("schedule", ALL)
def test_the_ends_are_data_and_noise_exactly(schedule: Schedule, dtype: torch.dtype) -> None:
    ends = torch.tensor([0.0, 1.0], dtype=dtype)
    assert schedule.alpha(ends).tolist() == [1, 0]
    assert schedule.sigma(ends).tolist() == [0, 1]
    assert schedule.log_snr(ends).tolist() == [math.inf, -math.inf]
    assert schedule.alpha(ends).dtype == schedule.log_snr(ends).dtype == dtype


def test_levels_by_hand() -> None:
    t = torch.tensor([0.25, 1 / 3], dtype=torch.float64)
    flow, cosine = FlowSchedule(), CosineSchedule()
    assert flow.alpha(t).tolist() == pytest.approx([3 / 4, 2 / 3], abs=1e-15)
    assert flow.sigma(t).tolist() == pytest.approx([1 / 4, 1 / 3], abs=1e-15)
    assert cosine.alpha(t).tolist() == pytest.approx([math.cos(math.pi / 8), 3**0.5 / 2], abs=1e-15)
    assert cosine.sigma(t).tolist() == pytest.approx([math.sin(math.pi / 8), 1 / 2], abs=1e-15)


def test_the_cosine_schedule_preserves_the_variance() -> None:
    schedule, t = CosineSchedule(), torch.linspace(0, 1, 1001, dtype=torch.float64)
    total = schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-15)


@pytest.mark.parametrize("schedule", ALL)
def test_signal_falls_and_noise_rises_all_the_way(schedule: Schedule) -> None:
    t = torch.linspace(0, 1, 1001, dtype=torch.float64)
    assert (schedule.alpha(t).diff() < 0).all()
    assert (schedule.sigma(t).diff() > 0).all()
    assert (schedule.log_snr(t).diff() < 0).all()


@pytest.mark.parametrize("schedule", ALL)
def test_log_snr_is_the_logarithm_of_the_ratio_of_powers(schedule: Schedule) -> None:
    expected = (schedule.alpha(INNER) ** 2 / schedule.sigma(INNER) ** 2).log()
    torch.testing.assert_close(schedule.log_snr(INNER), expected, rtol=0, atol=1e-12)
    assert float(schedule.log_snr(torch.tensor(0.5).double())) == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("schedule", ALL)
def test_log_snr_and_time_at_are_inverses(schedule: Schedule) -> None:
    t = torch.linspace(0, 1, 1001, dtype=torch.float64)
    torch.testing.assert_close(schedule.time_at(schedule.log_snr(t)), t, rtol=0, atol=1e-12)
    log_snr = torch.linspace(-30, 30, 61, dtype=torch.float64)  # t within 3e-7 of 1 rounds by 1e-9
    back = schedule.log_snr(schedule.time_at(log_snr))
    torch.testing.assert_close(back, log_snr, rtol=0, atol=1e-8)


@pytest.mark.parametrize("schedule", ALL)
def test_every_schedule_is_the_flow_on_another_clock(schedule: Schedule) -> None:
    """x_t / (alpha + sigma) has at the flow's time the same posterior, which solvers rely on."""
    tau = flow_time(INNER, schedule)
    torch.testing.assert_close(FlowSchedule().log_snr(tau), schedule.log_snr(INNER))
    torch.testing.assert_close(time_of_flow(tau, schedule), INNER, rtol=0, atol=1e-12)
    assert [float(time_of_flow(end, schedule)) for end in (0.0, 1.0)] == [0, 1]

    generator = torch.Generator().manual_seed(0)
    data, x_t = (torch.randn(5, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    t = torch.tensor([0.1, 0.4, 0.6, 0.9, 1.0], dtype=torch.float64)
    size = (schedule.alpha(t) + schedule.sigma(t))[:, None]
    torch.testing.assert_close(
        posterior_weights(x_t, t, data, schedule),
        posterior_weights(x_t / size, flow_time(t, schedule), data, FlowSchedule()),
    )
