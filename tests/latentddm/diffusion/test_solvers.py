"""Solvers take the steps of their papers: a weakened rival would flatter this project's method."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from oracles import LEVELS, Levels, gaussian, paper_target
from scipy.integrate import quad
from torch import Tensor

from latentddm.diffusion.sampling import sample, time_grid
from latentddm.diffusion.schedules import SCHEDULES, Schedule, make_schedule
from latentddm.diffusion.solvers import (
    SOLVERS,
    evaluations_of,
    solve,
    solver_grid,
    steps_within,
)

VARIANCE = 0.25
SINGLE = 2e-5  # some schedulers of diffusers compute a step in float32
Mean = Callable[[Tensor, float], Tensor]
ALL = [pytest.param(make_schedule(name), LEVELS[name], id=name) for name in SCHEDULES]
schedules = pytest.mark.parametrize(("schedule", "levels"), ALL)


class Clock:
    """alpha, sigma and log(alpha / sigma) of a process at a float time."""

    def __init__(self, levels: Levels) -> None:
        self.levels = levels

    def alpha(self, t: float) -> float:
        return float(self.levels(torch.tensor(t, dtype=torch.float64))[0])

    def sigma(self, t: float) -> float:
        return float(self.levels(torch.tensor(t, dtype=torch.float64))[1])

    def half_log_snr(self, t: float) -> float:
        return math.log(self.alpha(t) / self.sigma(t)) if t > 0 else math.inf


def start(count: int = 64) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 2, generator=generator, dtype=torch.float64)


def mean_of(levels: Levels) -> Mean:
    target = paper_target(levels)
    return lambda x, t: target.mean_denoiser(x, torch.full((len(x),), t, dtype=x.dtype), x)


def dpm_solver_pp_2m(mean: Mean, x: Tensor, times: list[float], clock: Clock) -> Tensor:
    """Algorithm 2 of arXiv 2211.01095, first order in the first and in the last step."""
    previous: Tensor | None = None
    for step, (t, s) in enumerate(pairwise(times)):
        x0 = mean(x, t)
        if s == 0:
            return x0
        h = clock.half_log_snr(s) - clock.half_log_snr(t)
        d = x0
        if previous is not None:
            r = (clock.half_log_snr(t) - clock.half_log_snr(times[step - 1])) / h
            d = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * previous
        x = clock.sigma(s) / clock.sigma(t) * x - clock.alpha(s) * math.expm1(-h) * d
        previous = x0
    raise AssertionError


def deis_3(mean: Mean, x: Tensor, times: list[float], clock: Clock) -> Tensor:
    """rho AB-DEIS of arXiv 2204.13902: eps interpolated in log rho, integrated by quadrature.

    Orders 1, 2, 3, 3, ..., then 2 and 1 in the last two steps.
    """
    rho = [clock.sigma(t) / clock.alpha(t) for t in times]
    outputs: list[Tensor] = []
    count = len(times) - 1
    for step, (t, s) in enumerate(pairwise(times)):
        x0 = mean(x, t)
        outputs.append((x - clock.alpha(t) * x0) / clock.sigma(t))
        order = min(3, step + 1, count - step)
        nodes = [math.log(rho[step - back]) for back in range(order)]
        total = x / clock.alpha(t)
        for j in range(order):

            def basis(r: float, j: int = j, nodes: list[float] = nodes) -> float:
                others = [node for k, node in enumerate(nodes) if k != j]
                parts = [(math.log(r) - node) / (nodes[j] - node) for node in others]
                return math.prod(parts)

            weight, _ = quad(basis, rho[step], max(rho[step + 1], 1e-300), epsabs=1e-12)
            total = total + weight * outputs[-1 - j]
        x = clock.alpha(s) * total
    return x


def unipc_3(mean: Mean, x: Tensor, times: list[float], clock: Clock) -> Tensor:
    """UniPC of arXiv 2302.04867 in its x_0 form, B(h) = expm1(-h). Orders 1, 2, 3, 3, ..., 2, 1.

    The corrector refines the state by the value at the predicted state; that value is kept.
    """
    lam = [clock.half_log_snr(t) for t in times]
    values: list[Tensor] = []
    count, last_x, last_order = len(times) - 1, x, 0
    for step, (t, s) in enumerate(pairwise(times)):
        x0 = mean(x, t)
        if step > 0:  # correct the state at t, not the value there
            nodes = [lam[step - 1 - k] for k in range(last_order)]
            old = times[step - 1]
            x = _uni_step(last_x, old, t, nodes, values[::-1], x0, last_order, clock)
        values.append(x0)
        if s == 0:
            return x0
        last_x, last_order = x, min(3, step + 1, count - step)
        nodes = [lam[step - k] for k in range(last_order)]
        x = _uni_step(x, t, s, nodes, values[::-1], None, last_order, clock)
    raise AssertionError


def _uni_step(
    x: Tensor,
    t: float,
    s: float,
    nodes: list[float],
    values: list[Tensor],
    end: Tensor | None,
    order: int,
    clock: Clock,
) -> Tensor:
    """sigma_s / sigma_t x - alpha_s (expm1(-h) x_0 + B(h) sum_m a_m (x_0^m - x_0) / r_m)."""
    first = clock.half_log_snr(t)
    h = clock.half_log_snr(s) - first
    r = [(node - first) / h for node in nodes[1:]]
    d = [(value - values[0]) / ratio for value, ratio in zip(values[1:order], r, strict=True)]
    if end is not None:
        r, d = [*r, 1.0], [*d, end - values[0]]
    b_h = math.expm1(-h)
    base = clock.sigma(s) / clock.sigma(t) * x - clock.alpha(s) * b_h * values[0]
    p = len(r)
    if p == 0:
        return base
    phi, factorial, right = b_h / -h - 1, 1.0, []
    for n in range(1, p + 1):
        right.append(phi * factorial / b_h)
        factorial *= n + 1
        phi = phi / -h - 1 / factorial
    if p == 1:
        a = [0.5]  # the paper's choice for a single unknown
    else:
        matrix = torch.tensor([[ratio ** (n - 1) for ratio in r] for n in range(1, p + 1)]).double()
        a = torch.linalg.solve(matrix, torch.tensor(right).double()).tolist()
    total = sum((w * v for w, v in zip(a, d, strict=True)), torch.zeros(()))
    return base - clock.alpha(s) * b_h * total


def heun(mean: Mean, x: Tensor, times: list[float], clock: Clock) -> Tensor:
    """Heun's method on the flow dy / dtau = (y - x_0) / tau; Euler in the step to zero.

    y = x / (alpha + sigma), tau = sigma / (alpha + sigma).
    """
    size = {t: clock.alpha(t) + clock.sigma(t) for t in times}
    tau = {t: clock.sigma(t) / size[t] for t in times}
    y = x / size[times[0]]
    for t, s in pairwise(times):
        slope = (y - mean(size[t] * y, t)) / tau[t]
        euler = y + (tau[s] - tau[t]) * slope
        if s == 0:
            return euler
        end = (euler - mean(size[s] * euler, s)) / tau[s]
        y = y + (tau[s] - tau[t]) / 2 * (slope + end)
    raise AssertionError


TEXTBOOK = {"dpmsolver++": dpm_solver_pp_2m, "deis": deis_3, "unipc": unipc_3, "heun": heun}


@schedules
@pytest.mark.parametrize("solver", TEXTBOOK)
@pytest.mark.parametrize("steps", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("kind", ["uniform", "log_snr"])
def test_a_solver_takes_the_steps_of_its_paper(
    solver: str, steps: int, kind: str, schedule: Schedule, levels: Levels
) -> None:
    x = start()
    times = torch.linspace(0.95, 0, steps + 1).double()
    if kind == "log_snr":
        times[:-1] = schedule.time_at(torch.linspace(-6, 8, steps + 1).double())[:-1]
    found = solve(paper_target(levels).mean_denoiser, x, times, solver, schedule=schedule)
    expected = TEXTBOOK[solver](mean_of(levels), x, times.tolist(), Clock(levels))
    torch.testing.assert_close(found, expected, rtol=SINGLE, atol=SINGLE)


@schedules
def test_the_stochastic_dpm_solver_takes_the_steps_of_its_paper(
    schedule: Schedule, levels: Levels
) -> None:
    """arXiv 2211.01095, appendix: with the noise given, each step is known."""
    x, times, clock = start(), torch.linspace(0.95, 0, 6).double(), Clock(levels)
    generator = torch.Generator().manual_seed(3)
    found = solve(
        paper_target(levels).mean_denoiser,
        x,
        times,
        "sde-dpmsolver++",
        generator=generator,
        schedule=schedule,
    )
    generator, mean, values = torch.Generator().manual_seed(3), mean_of(levels), list[Tensor]()
    nodes = times.tolist()
    for step, (t, s) in enumerate(pairwise(nodes)):
        torch.randn(x.shape, generator=generator, dtype=x.dtype)  # the xi that a mean ignores
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        values.append(mean(x, t))
        if s == 0:
            break
        h = clock.half_log_snr(s) - clock.half_log_snr(t)
        d = values[-1]
        if step > 0:
            r = (clock.half_log_snr(t) - clock.half_log_snr(nodes[step - 1])) / h
            d = d + (values[-1] - values[-2]) / (2 * r)
        keep = clock.sigma(s) / clock.sigma(t) * math.exp(-h)
        spread = clock.sigma(s) * math.sqrt(-math.expm1(-2 * h))
        x = keep * x - clock.alpha(s) * math.expm1(-2 * h) * d + spread * noise
    torch.testing.assert_close(found, values[-1], rtol=SINGLE, atol=SINGLE)


@schedules
def test_one_stochastic_step_is_our_bridge_with_full_churn(
    schedule: Schedule, levels: Levels
) -> None:
    x, times = start(), torch.tensor([0.9, 0.4, 0.0]).double()
    mean = paper_target(levels).mean_denoiser
    found, ours = (
        solve(
            mean,
            x,
            times,
            solver,
            churn,
            generator=torch.Generator().manual_seed(1),
            schedule=schedule,
        )
        for solver, churn in (("sde-dpmsolver++", 0.0), ("ddim", 1.0))
    )
    torch.testing.assert_close(found, ours, rtol=SINGLE, atol=SINGLE)


@schedules
@pytest.mark.parametrize(
    ("solver", "order"),
    [("ddim", 1), ("dpmsolver++", 2), ("deis", 2), ("unipc", 3), ("heun", 2)],
)
def test_errors_fall_at_the_solvers_order(
    solver: str, order: int, schedule: Schedule, levels: Levels
) -> None:
    """On Gaussian data x_t / sqrt(alpha^2 S + sigma^2) is constant along the exact trajectory.

    DEIS is of third order but for its first step, which is Euler's and makes the whole second.
    """
    target, x = gaussian(VARIANCE, 2, levels), start()
    log_snr = 2 * math.log(9)

    def scale(t: Tensor) -> Tensor:
        alpha, sigma = levels(t)
        return (alpha**2 * VARIANCE + sigma**2).sqrt()

    def error(steps: int) -> float:
        """Of x at a log SNR of 2 log 9, reached from -2 log 9 in equal steps."""
        arrived: list[Tensor] = []

        def recording(x_t: Tensor, t: Tensor, xi: Tensor) -> Tensor:
            arrived.append(x_t)
            return target.mean_denoiser(x_t, t, xi)

        times = schedule.time_at(torch.linspace(-log_snr, log_snr, steps + 1).double())
        grid = torch.cat([times, torch.zeros(1).double()])
        solve(recording, x, grid, solver, schedule=schedule)
        exact = x * scale(times[-1]) / scale(times[0])
        return float((arrived[-1] - exact).square().mean().sqrt())

    measured = math.log2(error(20) / error(80)) / 2
    assert order - 0.35 < measured < order + 0.7


@schedules
def test_the_stochastic_solver_ends_in_the_data_distribution(
    schedule: Schedule, levels: Levels
) -> None:
    x = torch.randn(20_000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    out = solve(
        gaussian(VARIANCE, 2, levels).mean_denoiser,
        x,
        solver_grid("sde-dpmsolver++", 100, schedule=schedule),
        "sde-dpmsolver++",
        generator=torch.Generator().manual_seed(1),
        schedule=schedule,
    )
    assert float(out.var()) == pytest.approx(VARIANCE, rel=0.03)


@schedules
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("evaluations", [1, 2, 4, 15, 50])
def test_evaluations_are_counted_exactly(
    solver: str, evaluations: int, schedule: Schedule, levels: Levels
) -> None:
    target, calls = gaussian(VARIANCE, 2, levels), []

    def counting(x_t: Tensor, t: Tensor, xi: Tensor) -> Tensor:
        calls.append((float(t[0]), float(xi.square().mean().sqrt())))
        return target.mean_denoiser(x_t, t, xi)

    steps = steps_within(solver, evaluations)
    scales = [0.5 + index for index in range(evaluations_of(solver, steps))]
    grid = solver_grid(solver, steps, schedule=schedule)
    out = solve(counting, start(), grid, solver, schedule=schedule, xi_scale=scales)
    assert len(calls) == len(scales)
    assert evaluations - 1 <= len(calls) <= evaluations
    assert bool(out.isfinite().all())
    assert all(0 < t <= 1 for t, _ in calls)
    for (_, size), scale in zip(calls, scales, strict=True):
        assert size == pytest.approx(scale, rel=0.3)  # of 128 standard normals


@schedules
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("kind", ["uniform", "log_snr", "power"])
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 200])
def test_the_whole_interval_gives_finite_images_in_single_precision(
    solver: str, kind: str, steps: int, schedule: Schedule, levels: Levels
) -> None:
    """t = 1 and t = 0 have an infinite log SNR: coefficients must not turn into NaN."""
    target = paper_target(levels)

    def denoiser(x_t: Tensor, t: Tensor, xi: Tensor) -> Tensor:
        return target.mean_denoiser(x_t.double(), t.double(), xi).float()

    grid = solver_grid(solver, steps, kind, schedule=schedule)  # type: ignore[arg-type]
    out = solve(denoiser, start().float(), grid, solver, schedule=schedule)
    assert out.dtype == torch.float32
    assert bool(out.isfinite().all())
    assert float(out.abs().max()) < 8


@schedules
def test_higher_orders_beat_ddim_on_a_known_target(schedule: Schedule, levels: Levels) -> None:
    """The reason to have them: on the paper's mixture 15 evaluations of a mean denoiser."""
    mean, x = paper_target(levels).mean_denoiser, start(400)
    exact = sample(mean, x, time_grid(1000), schedule=schedule)
    errors = {}
    for solver in set(SOLVERS) - {"sde-dpmsolver++"}:
        steps = steps_within(solver, 15)
        grid = solver_grid(solver, steps, safety=0.02, schedule=schedule)
        out = solve(mean, x, grid, solver, schedule=schedule)
        errors[solver] = float((out - exact).abs().median())
    assert all(errors[solver] < 0.7 * errors["ddim"] for solver in errors if solver != "ddim")


@schedules
@pytest.mark.parametrize("solver", sorted(set(SOLVERS) - {"sde-dpmsolver++"}))
def test_more_than_fourteen_steps_do_not_spoil_a_rival(
    solver: str, schedule: Schedule, levels: Levels
) -> None:
    """From 15 steps on diffusers' DEIS would extrapolate to t = 0 in full order, and be worse."""
    mean, x = paper_target(levels).mean_denoiser, start(400)
    exact = sample(mean, x, time_grid(1000), schedule=schedule)
    errors = []
    for steps in (10, 16, 40):
        grid = solver_grid(solver, steps, schedule=schedule)
        out = solve(mean, x, grid, solver, schedule=schedule)
        errors.append(float((out - exact).abs().mean()))
    assert errors[1] < 1.1 * errors[0]
    assert errors[2] < 0.7 * errors[0]


def test_a_batch_of_generators_makes_an_image_independent_of_its_batch() -> None:
    mean, x = paper_target().mean_denoiser, start(4)

    def drawn(rows: range) -> Tensor:
        generators = [torch.Generator().manual_seed(row) for row in rows]
        times = solver_grid("sde-dpmsolver++", 5)
        return solve(mean, x[list(rows)], times, "sde-dpmsolver++", 0.0, generators)

    torch.testing.assert_close(drawn(range(4))[2:], drawn(range(2, 4)))


def test_wrong_requests_are_refused_by_what_is_wrong() -> None:
    mean, x = paper_target().mean_denoiser, start()
    with pytest.raises(ValueError, match=r"solver .*ddim.*unipc.*'euler'"):
        solve(mean, x, time_grid(4), "euler")
    with pytest.raises(ValueError, match=r"churn .*unipc.*0\.5"):
        solve(mean, x, time_grid(4), "unipc", churn=0.5)
    with pytest.raises(ValueError, match=r"unipc .*solver_grid"):
        solve(mean, x, time_grid(2000), "unipc")
    with pytest.raises(ValueError, match=r"xi_scale .*2 .*7"):
        solve(mean, x, time_grid(4), "heun", xi_scale=[1, 1])
