"""An exact flow map samples exactly in any number of steps; a velocity taken for one does not."""

from __future__ import annotations

import pytest
import torch
from flow_map_oracles import ExactFlow, GaussianFlow, MixtureFlow, straight_end
from oracles import paper_target, rbf_discrepancy
from torch import Tensor

from latentddm.diffusion.flow_maps import average_velocity, dyadic_times, move, sample_flow_map
from latentddm.diffusion.sampling import SamplingStep, time_grid

FLOWS: dict[str, ExactFlow] = {
    "gaussian": GaussianFlow(),
    "mixture": MixtureFlow(paper_target(), 50),
}
each_flow = pytest.mark.parametrize("flow", FLOWS.values(), ids=FLOWS.keys())


def noise(count: int = 40) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 2, generator=generator, dtype=torch.float64)


@each_flow
@pytest.mark.parametrize(("steps", "grid"), [(1, "uniform"), (3, "power"), (3, "dyadic")])
def test_an_exact_flow_map_ends_where_the_ode_ends(flow: ExactFlow, steps: int, grid: str) -> None:
    x = noise()
    times = dyadic_times(steps) if grid == "dyadic" else time_grid(steps, grid)
    end = flow.arrive(x, torch.ones(len(x)).double(), torch.zeros(len(x)).double())
    drawn = sample_flow_map(lambda x, t, s: straight_end(flow, x, t, s), x, times)
    torch.testing.assert_close(drawn, end, atol=1e-3, rtol=0)
    velocity = sample_flow_map(lambda x, t, s: flow.mean(x, t), x, times)  # Euler's method
    assert (velocity - end).abs().max() > 0.05


def test_samples_of_an_exact_flow_map_have_the_distribution_of_the_data() -> None:
    flow = MixtureFlow(paper_target(), steps=30)
    x = noise(2000)
    drawn = sample_flow_map(lambda x, t, s: straight_end(flow, x, t, s), x, time_grid(2))
    exact = rbf_discrepancy(drawn, flow.mixture)
    assert abs(exact.value) < 5 * exact.standard_error
    mean = sample_flow_map(lambda x, t, s: flow.mean(x, t), x, time_grid(2))
    wrong = rbf_discrepancy(mean, flow.mixture)
    assert wrong.value > 20 * wrong.standard_error


def test_the_two_forms_of_a_flow_map_are_one() -> None:
    flow, x = GaussianFlow(), noise()
    t, s = torch.rand(2, len(x), dtype=torch.float64).sort(0, descending=True).values
    u = average_velocity(straight_end(flow, x, t, s), x, t)
    torch.testing.assert_close(move(x, u, t, s), flow.arrive(x, t, s))


def test_a_callback_sees_every_step() -> None:
    flow, seen = GaussianFlow(), list[SamplingStep]()
    drawn = sample_flow_map(
        lambda x, t, s: straight_end(flow, x, t, s), noise(), time_grid(3), seen.append
    )
    assert [float(step.t) for step in seen] == pytest.approx([1, 2 / 3, 1 / 3])
    assert torch.equal(seen[-1].x_s, drawn)
    assert torch.equal(seen[1].x_s, seen[2].x_t)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 10, 15, 16, 31, 100])
def test_dyadic_times_have_steps_that_were_learnt(steps: int) -> None:
    times = dyadic_times(steps)
    assert (times[0], times[-1], len(times)) == (1, 0, steps + 1)
    lengths = -times.diff()
    assert (lengths > 0).all()
    assert torch.equal(lengths.log2(), lengths.log2().round())
    assert len(lengths.unique()) <= 2
    assert torch.equal(times[:-1] / lengths, (times[:-1] / lengths).round())  # t, in steps


def test_impossible_times_are_refused() -> None:
    with pytest.raises(ValueError, match="steps must be at least 1"):
        dyadic_times(0)
    with pytest.raises(ValueError, match="decrease"):
        sample_flow_map(lambda x, t, s: x, noise(), torch.tensor([0.0, 1.0]))
