"""The sampler: fresh xi, one call a step, scales of xi, grids, generators, refusals."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from latentddm.diffusion.process import bridge_step
from latentddm.diffusion.sampling import (
    LOG_SNR_LIMIT,
    SamplingStep,
    least_safety,
    sample,
    time_grid,
)
from latentddm.diffusion.schedules import SCHEDULES, FlowSchedule, Schedule, make_schedule

FLOW = FlowSchedule()
ALL = [pytest.param(make_schedule(name), id=name) for name in SCHEDULES]


class Recorder:
    """A denoiser that keeps its inputs; its output depends on all three."""

    def __init__(self) -> None:
        self.calls: list[tuple[Tensor, Tensor, Tensor]] = []

    def __call__(self, x_t: Tensor, t: Tensor, xi: Tensor) -> Tensor:
        self.calls.append((x_t.clone(), t.clone(), xi.clone()))
        return torch.tanh(x_t) * (1 + t.reshape(-1, 1, 1)) + 0.5 * xi


def noise(batch: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 2, 3, generator=generator, dtype=torch.float64)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("churn", [0.0, 0.5])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_each_step_is_one_call_with_a_fresh_xi(steps: int, churn: float) -> None:
    recorder, times = Recorder(), time_grid(steps)
    sample(recorder, noise(4), times, churn, generator=seeded(0))
    assert len(recorder.calls) == steps
    for (x_t, t, xi), expected in zip(recorder.calls, times[:-1], strict=True):
        assert t.shape == (4,)
        assert (t == expected).all()
        assert xi.shape == x_t.shape
    values = torch.stack([xi for _, _, xi in recorder.calls]).flatten()
    assert len(values.unique()) == len(values)


@pytest.mark.parametrize("schedule", ALL)
def test_xi_and_the_noise_of_the_bridge_are_independent_standard_normals(
    schedule: Schedule,
) -> None:
    recorder, x = Recorder(), noise(4000)
    seen: list[SamplingStep] = []
    sample(recorder, x, time_grid(3), 1.0, schedule, seeded(1), callback=seen.append)
    draws = [xi.flatten() for _, _, xi in recorder.calls] + [x.flatten()]
    for step in seen[:-1]:  # solve the bridge for the noise it was given
        inputs = step.x_t, step.x0, step.t, step.s
        kept = bridge_step(*inputs, torch.zeros_like(x), schedule, 1.0)
        unit = bridge_step(*inputs, torch.ones_like(x), schedule, 1.0)
        draws.append(((step.x_s - kept) / (unit - kept)).flatten())
    table = torch.stack(draws)
    count = table.shape[1]
    assert table.mean(1).abs().max() < 4 / count**0.5
    covariance = table.cov() - torch.eye(len(draws), dtype=torch.float64)
    assert covariance.abs().max() < 4 * (2 / count) ** 0.5


@pytest.mark.parametrize("schedule", ALL)
@pytest.mark.parametrize("churn", [0.0, 0.7])
def test_the_trajectory_is_the_bridge_and_ends_in_the_last_x0(
    churn: float, schedule: Schedule
) -> None:
    """A callback gets every step, changes nothing, and the result is the network's, not x_delta."""
    times = time_grid(5, safety=0.02)
    seen: list[SamplingStep] = []
    plain = sample(Recorder(), noise(3), times, churn, schedule, seeded(3))
    recorder = Recorder()
    watched = sample(recorder, noise(3), times, churn, schedule, seeded(3), callback=seen.append)
    assert torch.equal(plain, watched)
    assert [step.step for step in seen] == [0, 1, 2, 3, 4]
    assert all(isinstance(step, SamplingStep) for step in seen)
    assert torch.equal(seen[0].x_t, noise(3))
    assert torch.equal(seen[-1].x0, plain)
    assert not torch.allclose(seen[-1].x_s, plain)
    for i, step in enumerate(seen):
        assert (float(step.t), float(step.s)) == (float(times[i]), float(times[i + 1]))
        assert torch.equal(step.x_t, recorder.calls[i][0])
        assert torch.equal(step.x_t, seen[i - 1].x_s if i else noise(3))
        if churn == 0:
            inputs = step.x_t, step.x0, step.t, step.s
            expected = bridge_step(*inputs, torch.zeros_like(plain), schedule)
            assert torch.equal(step.x_s, expected)


@pytest.mark.parametrize("churn", [0.0, 0.5])
def test_a_scale_of_one_changes_no_bit_and_another_scales_each_xi(churn: float) -> None:
    def calls(xi_scale: float | list[float]) -> tuple[list[Tensor], Tensor]:
        recorder = Recorder()
        out = sample(
            recorder, noise(3), time_grid(3), churn, generator=seeded(3), xi_scale=xi_scale
        )
        return [xi for _, _, xi in recorder.calls], out

    def exact() -> Tensor:
        return sample(Recorder(), noise(3), time_grid(3), churn, generator=seeded(3))

    xi, out = calls(1.0)
    assert torch.equal(out, exact())
    for scale in (0.5, [0.25, 0.0, 2.0], [1, 1, 1]):
        scaled, _ = calls(scale)
        each = scale if isinstance(scale, list) else [scale] * 3
        for one, other, factor in zip(xi, scaled, each, strict=True):
            assert torch.equal(other, factor * one)
    assert torch.equal(calls([1, 1, 1])[1], out)


@pytest.mark.parametrize(
    ("scale", "said"),
    [
        ([0.5], r"xi_scale .*1 .*3"),
        ([0.5] * 4, r"xi_scale .*4 .*3"),
        ([], r"xi_scale .*0 .*3"),
        ([1, -1, 1], r"xi_scale .*-1"),
        (-0.1, r"xi_scale .*-0\.1"),
        (math.nan, "xi_scale .*nan"),
        (math.inf, "xi_scale .*inf"),
    ],
)
def test_scales_of_xi_that_do_not_fit_are_refused(scale: float | list[float], said: str) -> None:
    recorder = Recorder()
    with pytest.raises(ValueError, match=said):
        sample(recorder, noise(2), time_grid(3), xi_scale=scale)
    assert recorder.calls == []


def test_the_same_seed_gives_the_same_samples_and_another_seed_others() -> None:
    one, same, other = (
        sample(Recorder(), noise(3), time_grid(4), 0.5, generator=seeded(seed))
        for seed in (5, 5, 6)
    )
    assert torch.equal(one, same)
    assert not torch.allclose(one, other)


@pytest.mark.parametrize("churn", [0.0, 0.5])
@pytest.mark.parametrize("split", [[6], [1, 5], [2, 2, 2], [1] * 6])
def test_one_generator_for_each_sample_makes_the_batch_irrelevant(
    split: list[int], churn: float
) -> None:
    x, times = noise(6), time_grid(4)
    whole = sample(Recorder(), x, times, churn, generator=[seeded(i) for i in range(6)])
    parts, start = [], 0
    for size in split:
        generators = [seeded(i) for i in range(start, start + size)]
        part = x[start : start + size]
        parts.append(sample(Recorder(), part, times, churn, generator=generators))
        start += size
    assert torch.equal(torch.cat(parts), whole)


def test_sampling_leaves_its_input_and_the_graph_alone() -> None:
    x = noise(2)
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    out = sample(lambda x_t, t, xi: weight * x_t, x, time_grid(3), generator=seeded(0))
    assert not out.requires_grad
    assert torch.equal(x, noise(2))


def test_times_follow_the_type_of_x() -> None:
    x = noise(2).float()
    out = sample(Recorder(), x, time_grid(3), 0.5, generator=seeded(0))
    assert out.dtype == torch.float32


def test_the_uniform_grid_has_equal_steps_of_time() -> None:
    for steps in (1, 3, 50):
        for safety in (0.0, 0.05):
            times = time_grid(steps, safety=safety)
            assert times.shape == (steps + 1,)
            assert times.dtype == torch.float64
            assert (float(times[0]), float(times[-1])) == (1 - safety, safety)
            gaps = -times.diff() * steps
            torch.testing.assert_close(gaps, torch.full_like(gaps, 1 - 2 * safety))


@pytest.mark.parametrize("power", [0.4, 0.5, 1.0, 2.0])
def test_the_power_grid_has_equal_steps_of_its_root(power: float) -> None:
    for steps in (1, 4, 10):
        for safety in (0.0, 0.05):
            times = time_grid(steps, "power", safety, power=power)
            assert (float(times[0]), float(times[-1])) == (1 - safety, safety)
            gaps = -((times - safety) / (1 - 2 * safety)).pow(1 / power).diff() * steps
            torch.testing.assert_close(gaps, torch.ones_like(gaps))


@pytest.mark.parametrize("schedule", ALL)
@pytest.mark.parametrize("steps", [1, 2, 3, 20, 1000])
@pytest.mark.parametrize("safety", [0.0, 1e-6, 1e-3, 0.1])
def test_the_log_snr_grid_has_equal_steps_of_log_snr(
    steps: int, safety: float, schedule: Schedule
) -> None:
    """Its ends are those asked for, though log SNR is infinite at 0 and 1."""
    times = time_grid(steps, "log_snr", safety, schedule)
    assert times.shape == (steps + 1,)
    assert (float(times[0]), float(times[-1])) == (1 - safety, safety)
    assert (times.diff() < 0).all()
    end = LOG_SNR_LIMIT
    if safety > 0:
        ratio = {
            "flow": (1 - safety) / safety,
            "cosine": 1 / math.tan(math.pi / 2 * safety),
        }[schedule.name]
        end = min(end, 2 * math.log(ratio))
    expected = torch.linspace(-end, end, steps + 1, dtype=torch.float64)[1:-1]
    inner = times[1:-1]
    found = (schedule.alpha(inner) ** 2 / schedule.sigma(inner) ** 2).log()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("schedule", ALL)
def test_eps_keeps_a_distance_from_pure_noise_and_the_others_none(schedule: Schedule) -> None:
    """x_0 = (x_t - sigma eps) / alpha multiplies rounding by sigma / alpha: at most 999 there."""
    safety = least_safety("eps", schedule)
    t = torch.tensor(1 - safety, dtype=torch.float64)
    assert float(schedule.sigma(t) / schedule.alpha(t)) == pytest.approx(999, rel=1e-6)
    assert [least_safety(other, schedule) for other in ("x0", "v", "edm")] == [0, 0, 0]
    assert time_grid(4, safety=safety, schedule=schedule)[0] == 1 - safety


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"steps": 0}, "steps"),
        ({"steps": 4, "safety": -0.1}, "safety"),
        ({"steps": 4, "safety": 0.5}, "safety"),
        ({"steps": 4, "safety": math.nan}, "safety"),
        ({"steps": 4, "kind": "karras"}, "uniform, log_snr, power.*'karras'"),
        ({"steps": 4, "kind": "power", "power": 0.0}, r"power .*0\.0"),
    ],
)
def test_a_grid_that_cannot_be_is_refused(arguments: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        time_grid(**arguments)


@pytest.mark.parametrize(
    "times",
    [[1.0], [], [0.0, 1.0], [1.0, 0.5, 0.5, 0.0], [1.1, 0.5], [1.0, -0.1], [1.0, math.nan, 0.0]],
)
def test_times_that_do_not_decrease_from_noise_to_data_are_refused(times: list[float]) -> None:
    recorder = Recorder()
    with pytest.raises(ValueError, match="times"):
        sample(recorder, noise(2), torch.tensor(times, dtype=torch.float64))
    assert recorder.calls == []


def test_times_equal_in_the_type_of_x_are_refused() -> None:
    """In bfloat16 two neighbours of a fine grid are one number, and the bridge divides by zero."""
    x = noise(2).bfloat16()
    with pytest.raises(ValueError, match="bfloat16"):
        sample(lambda x_t, t, xi: x_t, x, time_grid(1000))


@pytest.mark.parametrize("churn", [-0.1, 1.1, math.nan])
def test_a_churn_outside_its_range_is_refused(churn: float) -> None:
    with pytest.raises(ValueError, match="churn"):
        sample(Recorder(), noise(2), time_grid(3), churn)


def test_too_few_generators_are_refused() -> None:
    with pytest.raises(ValueError, match=r"2 generators.*3"):
        sample(Recorder(), noise(3), time_grid(2), generator=[seeded(0), seeded(1)])
