"""Rivals are run as their papers say: a weakened rival would flatter the method of this project."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from oracles import Mixture, paper_target
from scipy.integrate import quad
from torch import Tensor

from latentddm.diffusion.process import bridge_step
from latentddm.diffusion.sampling import sample, time_grid
from latentddm.diffusion.solvers import (
    SCHEMES,
    SOLVERS,
    evaluations_of,
    solve,
    solver_grid,
    steps_within,
)

VARIANCE = 0.25
SINGLE = 2e-5  # some schedulers of diffusers compute a step in float32
Mean = Callable[[Tensor, float], Tensor]


def gaussian() -> Mixture:
    one = torch.ones(1, dtype=torch.float64)
    return Mixture(one, torch.zeros(1, 2, dtype=torch.float64), VARIANCE * one)


def start(count: int = 64) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 2, generator=generator, dtype=torch.float64)


def mean_of(law: Mixture) -> Mean:
    return lambda x, t: law.mean_denoiser(x, torch.full((len(x),), t, dtype=x.dtype), x)


def half_log_snr(t: float) -> float:
    return math.log((1 - t) / t)


def dpm_solver_pp_2m(mean: Mean, x: Tensor, times: list[float]) -> Tensor:
    """Algorithm 2 of arXiv 2211.01095, first order in the first and in the last step."""
    previous: Tensor | None = None
    for step, (t, s) in enumerate(pairwise(times)):
        x0 = mean(x, t)
        if s == 0:
            return x0
        h = half_log_snr(s) - half_log_snr(t)
        d = x0
        if previous is not None:
            r = (half_log_snr(t) - half_log_snr(times[step - 1])) / h
            d = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * previous
        x = s / t * x - (1 - s) * math.expm1(-h) * d
        previous = x0
    raise AssertionError


def deis_3(mean: Mean, x: Tensor, times: list[float]) -> Tensor:
    """rho AB-DEIS of arXiv 2204.13902: eps interpolated in log rho, integrated by quadrature.

    Orders 1, 2, 3, 3, ..., then 2 and 1 in the last two steps.
    """
    rho = [t / (1 - t) for t in times]
    outputs: list[Tensor] = []
    count = len(times) - 1
    for step, (t, s) in enumerate(pairwise(times)):
        x0 = mean(x, t)
        outputs.append((x - (1 - t) * x0) / t)
        order = min(3, step + 1, count - step)
        nodes = [math.log(rho[step - back]) for back in range(order)]
        total = x / (1 - t)
        for j in range(order):

            def basis(r: float, j: int = j, nodes: list[float] = nodes) -> float:
                others = [node for k, node in enumerate(nodes) if k != j]
                parts = [(math.log(r) - node) / (nodes[j] - node) for node in others]
                return math.prod(parts)

            weight, _ = quad(basis, rho[step], max(rho[step + 1], 1e-300), epsabs=1e-12)
            total = total + weight * outputs[-1 - j]
        x = (1 - s) * total
    return x


def unipc_3(mean: Mean, x: Tensor, times: list[float]) -> Tensor:
    """UniPC of arXiv 2302.04867 in its x_0 form, B(h) = expm1(-h). Orders 1, 2, 3, 3, ..., 2, 1.

    The corrector refines the state by the value at the predicted state; that value is kept.
    """
    lam = [half_log_snr(t) if t > 0 else math.inf for t in times]
    values: list[Tensor] = []
    count, last_x, last_order = len(times) - 1, x, 0
    for step, (t, s) in enumerate(pairwise(times)):
        x0 = mean(x, t)
        if step > 0:  # correct the state at t, not the value there
            back = list(range(last_order))
            nodes = [lam[step - 1 - k] for k in back]
            x = _uni_step(
                last_x,
                times[step - 1],
                t,
                lam,
                step - 1,
                nodes,
                [*reversed(values)],
                x0,
                last_order,
            )
        values.append(x0)
        if s == 0:
            return x0
        last_x, last_order = x, min(3, step + 1, count - step)
        nodes = [lam[step - k] for k in range(last_order)]
        x = _uni_step(x, t, s, lam, step, nodes, values[::-1], None, last_order)
    raise AssertionError


def _uni_step(
    x: Tensor,
    t: float,
    s: float,
    lam: list[float],
    step: int,
    nodes: list[float],
    values: list[Tensor],
    end: Tensor | None,
    order: int,
) -> Tensor:
    """x_s = (s / t) x - alpha_s expm1(-h) x_0 - alpha_s B(h) sum_m a_m (x_0^m - x_0) / r_m."""
    h = lam[step + 1] - lam[step]
    r = [(node - lam[step]) / h for node in nodes[1:]]
    d = [(value - values[0]) / ratio for value, ratio in zip(values[1:order], r, strict=True)]
    if end is not None:
        r, d = [*r, 1.0], [*d, end - values[0]]
    p = len(r)
    if p == 0:
        return s / t * x - (1 - s) * math.expm1(-h) * values[0]
    b_h = math.expm1(-h)
    phi, factorial, right = math.expm1(-h) / -h - 1, 1.0, []
    for n in range(1, p + 1):
        right.append(phi * factorial / b_h)
        factorial *= n + 1
        phi = phi / -h - 1 / factorial
    if p == 1:
        a = [0.5]  # the paper's choice for a single unknown
    else:
        matrix = torch.tensor([[ratio ** (n - 1) for ratio in r] for n in range(1, p + 1)]).double()
        a = torch.linalg.solve(matrix, torch.tensor(right).double()).tolist()
    base = s / t * x - (1 - s) * math.expm1(-h) * values[0]
    return base - (1 - s) * b_h * sum((w * v for w, v in zip(a, d, strict=True)), torch.zeros(()))


def heun(mean: Mean, x: Tensor, times: list[float]) -> Tensor:
    """Heun's method on dx/dt = (x - x_0) / t; Euler in the step to zero."""
    for t, s in pairwise(times):
        slope = (x - mean(x, t)) / t
        euler = x + (s - t) * slope
        x = euler if s == 0 else x + (s - t) / 2 * (slope + (euler - mean(euler, s)) / s)
    return x


TEXTBOOK = {"dpmsolver++": dpm_solver_pp_2m, "deis": deis_3, "unipc": unipc_3, "heun": heun}


@pytest.mark.parametrize("solver", TEXTBOOK)
@pytest.mark.parametrize("steps", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("kind", ["uniform", "log_snr"])
def test_a_solver_takes_the_steps_of_its_paper(solver: str, steps: int, kind: str) -> None:
    law, x = paper_target(), start()
    times = torch.linspace(0.95, 0, steps + 1).double()
    if kind == "log_snr":
        times[:-1] = torch.sigmoid(torch.linspace(3, -4, steps + 1).double())[:-1]
    found = solve(law.mean_denoiser, x, times, solver)
    expected = TEXTBOOK[solver](mean_of(law), x, times.tolist())
    torch.testing.assert_close(found, expected, rtol=SINGLE, atol=SINGLE)


def test_the_stochastic_dpm_solver_takes_the_steps_of_its_paper() -> None:
    """arXiv 2211.01095, appendix: with the noise given, each step is known."""
    law, x, times = paper_target(), start(), torch.linspace(0.95, 0, 6).double()
    found = solve(
        law.mean_denoiser, x, times, "sde-dpmsolver++", generator=torch.Generator().manual_seed(3)
    )
    generator, mean, values = torch.Generator().manual_seed(3), mean_of(law), list[Tensor]()
    nodes = times.tolist()
    for step, (t, s) in enumerate(pairwise(nodes)):
        torch.randn(x.shape, generator=generator, dtype=x.dtype)  # the xi that a mean ignores
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        values.append(mean(x, t))
        if s == 0:
            break
        h = half_log_snr(s) - half_log_snr(t)
        d = values[-1]
        if step > 0:
            r = (half_log_snr(t) - half_log_snr(nodes[step - 1])) / h
            d = d + (values[-1] - values[-2]) / (2 * r)
        spread = s * math.sqrt(-math.expm1(-2 * h))
        x = s / t * math.exp(-h) * x - (1 - s) * math.expm1(-2 * h) * d + spread * noise
    torch.testing.assert_close(found, values[-1], rtol=SINGLE, atol=SINGLE)


def test_one_stochastic_step_is_our_bridge_with_full_churn() -> None:
    law, x = paper_target(), start()
    times = torch.tensor([0.9, 0.4, 0.0]).double()
    found = solve(
        law.mean_denoiser, x, times, "sde-dpmsolver++", generator=torch.Generator().manual_seed(1)
    )
    ours = sample(
        law.mean_denoiser, x, times, churn=1.0, generator=torch.Generator().manual_seed(1)
    )
    torch.testing.assert_close(found, ours, rtol=SINGLE, atol=SINGLE)
    assert bridge_step(x, x, 0.9, 0.4, x).isfinite().all()


@pytest.mark.parametrize(
    ("solver", "order"),
    [("ddim", 1), ("dpmsolver++", 2), ("deis", 2), ("unipc", 3), ("heun", 2)],
)
def test_errors_fall_at_the_solvers_order(solver: str, order: int) -> None:
    """On Gaussian data x_t / sqrt(alpha^2 S + t^2) is constant along the exact trajectory.

    DEIS is of third order but for its first step, which is Euler's and makes the whole second.
    """
    law, x = gaussian(), start()

    def scale(t: float) -> float:
        return ((1 - t) ** 2 * VARIANCE + t**2) ** 0.5

    def error(steps: int) -> float:
        """Of x at t = .1, reached from t = .9 in equal steps of log SNR."""
        arrived: list[Tensor] = []

        def seeing(x_t: Tensor, t: Tensor, xi: Tensor) -> Tensor:
            arrived.append(x_t)
            return law.mean_denoiser(x_t, t, xi)

        times = torch.sigmoid(-torch.linspace(-math.log(9), math.log(9), steps + 1).double())
        solve(seeing, x, torch.cat([times, torch.zeros(1).double()]), solver)
        exact = x * scale(0.1) / scale(0.9)
        return float((arrived[-1] - exact).square().mean().sqrt())

    measured = math.log2(error(20) / error(80)) / 2
    assert order - 0.35 < measured < order + 0.7


def test_the_stochastic_solver_ends_in_the_data_distribution() -> None:
    x = torch.randn(20_000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    out = solve(
        gaussian().mean_denoiser,
        x,
        solver_grid("sde-dpmsolver++", 100),
        "sde-dpmsolver++",
        generator=torch.Generator().manual_seed(1),
    )
    assert float(out.var()) == pytest.approx(VARIANCE, rel=0.03)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("evaluations", [1, 2, 4, 15, 50])
def test_evaluations_are_counted_exactly(solver: str, evaluations: int) -> None:
    law, calls = gaussian(), []

    def counting(x_t: Tensor, t: Tensor, xi: Tensor) -> Tensor:
        calls.append(t)
        return law.mean_denoiser(x_t, t, xi)

    steps = steps_within(solver, evaluations)
    out = solve(counting, start(), solver_grid(solver, steps), solver)
    assert len(calls) == evaluations_of(solver, steps)
    assert evaluations - 1 <= len(calls) <= evaluations
    assert bool(out.isfinite().all())
    assert all(0 < float(t[0]) <= 1 for t in calls)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("kind", ["uniform", "log_snr", "power"])
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 200])
def test_the_whole_interval_gives_finite_images_in_single_precision(
    solver: str, kind: str, steps: int
) -> None:
    """t = 1 and t = 0 have an infinite log SNR: coefficients must not turn into NaN."""
    law = paper_target()

    def denoiser(x_t: Tensor, t: Tensor, xi: Tensor) -> Tensor:
        return law.mean_denoiser(x_t.double(), t.double(), xi).float()

    out = solve(denoiser, start().float(), solver_grid(solver, steps, kind), solver)  # type: ignore[arg-type]
    assert out.dtype == torch.float32
    assert bool(out.isfinite().all())
    assert float(out.abs().max()) < 8


def test_higher_orders_beat_ddim_on_a_known_target() -> None:
    """The reason to have them: on the paper's mixture 15 evaluations of a mean denoiser."""
    law, x = paper_target(), start(400)
    exact = sample(law.mean_denoiser, x, time_grid(2000))
    errors = {
        solver: float(
            (
                solve(
                    law.mean_denoiser,
                    x,
                    solver_grid(solver, steps_within(solver, 15), safety=0.02),
                    solver,
                )
                - exact
            )
            .abs()
            .median()
        )
        for solver in SOLVERS
        if solver != "sde-dpmsolver++"
    }
    assert all(errors[solver] < 0.7 * errors["ddim"] for solver in errors if solver != "ddim")


def test_more_than_fourteen_steps_do_not_spoil_a_rival() -> None:
    """From 15 steps on diffusers' DEIS would extrapolate to t = 0 and lose what it had won."""
    law, x = paper_target(), start(400)
    exact = sample(law.mean_denoiser, x, time_grid(2000))
    for solver in set(SOLVERS) - {"sde-dpmsolver++"}:
        errors = [
            float(
                (solve(law.mean_denoiser, x, solver_grid(solver, n), solver) - exact).abs().mean()
            )
            for n in (10, 16, 40)
        ]
        assert errors[1] < 1.1 * errors[0], solver
        assert errors[2] < 0.7 * errors[0], solver


def test_a_batch_of_generators_makes_an_image_independent_of_its_batch() -> None:
    law, x = paper_target(), start(4)

    def drawn(rows: range) -> Tensor:
        generators = [torch.Generator().manual_seed(row) for row in rows]
        times = solver_grid("sde-dpmsolver++", 5)
        return solve(law.mean_denoiser, x[list(rows)], times, "sde-dpmsolver++", 0.0, generators)

    torch.testing.assert_close(drawn(range(4))[2:], drawn(range(2, 4)))


def test_wrong_requests_say_what_is_wrong() -> None:
    law, x = gaussian(), start()
    with pytest.raises(ValueError, match="solver must be one of ddim, dpmsolver"):
        solve(law.mean_denoiser, x, time_grid(4), "euler")
    with pytest.raises(ValueError, match="churn is a setting of ddim"):
        solve(law.mean_denoiser, x, time_grid(4), "unipc", churn=0.5)
    with pytest.raises(ValueError, match="solver_grid"):
        solve(law.mean_denoiser, x, time_grid(2000), "unipc")
    assert set(SOLVERS) == {"ddim", *SCHEMES}
