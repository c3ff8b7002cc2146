"""Each rival's loss is stationary at the exact flow map, of a Gaussian and of a mixture.

Its data may be x_0 and eps themselves, or their means given x_t: these have the same x_t, and the
exact velocity as their difference, so that at the exact flow map nothing of the loss is left.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from flow_map_oracles import ExactFlow, GaussianFlow, MixtureFlow, straight_end
from oracles import Mixture, paper_target
from torch import Tensor

from latentddm.diffusion.schedules import FlowSchedule
from latentddm.networks.attention import forward_derivative
from latentddm.training.objective import ObjectiveTerms
from latentddm.training.rivals import (
    FlowMapObjective,
    InductiveObjective,
    MeanFlowObjective,
    ShortcutObjective,
)
from latentddm.training.rivals.inductive import (
    LARGEST_ETA,
    group_discrepancy,
    laplace_kernel,
    nearer_time,
)
from latentddm.training.rivals.mean_flow import adaptive_weight, mean_flow_target
from latentddm.training.rivals.shortcut import dyadic_steps, self_consistency_target

SCHEDULE = FlowSchedule()
FLOWS: dict[str, ExactFlow] = {
    "gaussian": GaussianFlow(),
    "mixture": MixtureFlow(paper_target(), steps=8),
}
each_flow = pytest.mark.parametrize("flow", FLOWS.values(), ids=FLOWS.keys())
each_precise_flow = pytest.mark.parametrize(
    "flow", [FLOWS["gaussian"], MixtureFlow(paper_target(), steps=24)], ids=FLOWS.keys()
)
# By velocity; inductive moment matching compares distributions.
REGRESSIONS: dict[str, FlowMapObjective] = {
    "shortcut": ShortcutObjective(consistency_share=0.5, finest=1024),
    "mean_flow": MeanFlowObjective(velocity_share=0.5),
    "improved mean_flow": MeanFlowObjective(velocity_share=0.5, improved=True),
}
each_regression = pytest.mark.parametrize("objective", REGRESSIONS.values(), ids=REGRESSIONS.keys())

Map = Callable[[Tensor, Tensor, Tensor], Tensor]


class Random:
    """`protocols.RandomNumbers` of `count` samples, float64."""

    def __init__(self, count: int, seed: int = 0) -> None:
        self.count, self.generator = count, torch.Generator().manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(self.count, *shape, generator=self.generator, dtype=torch.float64)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(self.count, *shape, generator=self.generator, dtype=torch.float64)


class Oracle:
    """`protocols.Evaluator` of a known flow map; in training u is shifted by `shift` [D]."""

    def __init__(self, flow_map: Map, shift: Tensor | None = None) -> None:
        self.flow_map, self.shift = flow_map, shift

    def with_gradient(
        self, x_t: Tensor, t: Tensor, xi: Tensor | None = None, s: Tensor | None = None
    ) -> Tensor:
        assert xi is None
        assert s is not None
        g = self.flow_map(x_t, t, s)
        return g if self.shift is None else g - t[:, None] * self.shift

    def current(self, x_t: Tensor, t: Tensor, s: Tensor | None = None) -> Tensor:
        assert s is not None
        return self.flow_map(x_t, t, s)

    average = current

    def on(self, rows: Tensor) -> Oracle:
        return self


def exact(flow: ExactFlow) -> Map:
    return lambda x, t, s: straight_end(flow, x, t, s)


def velocity_only(flow: ExactFlow) -> Map:
    """Plain diffusion's answer to every step."""
    return lambda x, t, s: flow.mean(x, t)


def too_far(flow: ExactFlow) -> Map:
    """A flow map that ends beyond s, right for s = t."""
    return lambda x, t, s: straight_end(flow, x, t, 0.5 * s + 0.5 * s**2 / t)


def batch(
    objective: FlowMapObjective, flow: ExactFlow, count: int = 32
) -> tuple[Tensor, dict[str, Tensor]]:
    random = Random(count)
    x0 = flow.draw(count, random.generator)
    return x0, objective.numbers(random, x0)


def conditional_means(
    flow: ExactFlow, x0: Tensor, numbers: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """E[x_0 | x_t] and E[eps | x_t] in the place of x_0 and eps: the same x_t."""
    t = numbers["t"][:, None]
    x_t = (1 - t) * x0 + t * numbers["noise"]
    mean = flow.mean(x_t, numbers["t"])
    return mean, numbers | {"noise": (x_t - (1 - t) * mean) / t}


def loss(
    objective: FlowMapObjective,
    flow_map: Map,
    x0: Tensor,
    numbers: dict[str, Tensor],
    shift: Tensor | None = None,
) -> ObjectiveTerms:
    return objective.evaluate(Oracle(flow_map, shift), x0, numbers, x0, SCHEDULE)


@pytest.mark.parametrize(
    ("kind", "target"),
    [
        ("shortcut", "gaussian"),
        ("shortcut", "mixture"),
        ("mean_flow", "gaussian"),
        ("mean_flow", "mixture"),
        ("improved mean_flow", "gaussian"),
        ("improved mean_flow", "mixture"),
    ],
)
def test_nothing_of_the_loss_is_left_at_the_exact_flow_map(kind: str, target: str) -> None:
    objective, flow = REGRESSIONS[kind], FLOWS[target]
    x0, numbers = batch(objective, flow)
    stepping = numbers["s"] < numbers["t"]
    assert 6 < int(stepping.sum()) < 26
    given = conditional_means(flow, x0, numbers)
    right = loss(objective, exact(flow), *given).confinement
    assert right.mean() < 1e-5  # of the finest halves of a shortcut, which are Euler steps
    for wrong in (velocity_only(flow), too_far(flow)):
        error = loss(objective, wrong, *given).confinement
        assert error[stepping].mean() > 20 * right[stepping].mean()
        assert error[~stepping].max() < 1e-8  # the velocity itself is right


@each_flow
@each_regression
def test_the_gradient_of_real_data_vanishes_at_the_exact_flow_map(
    objective: FlowMapObjective, flow: ExactFlow
) -> None:
    """x_0 and its mirror image about E[x_0 | x_t]: two with the mean that x_0 has given x_t.

    Their errors are equal in size at the exact flow map, and so are the adaptive weights of a mean
    flow; on a skewed posterior its power moves the optimum, which these pairs do not show.
    """
    x0, numbers = batch(objective, flow)
    mean, of_mean = conditional_means(flow, x0, numbers)
    mirrored = 2 * of_mean["noise"] - numbers["noise"]
    pair = {name: torch.cat([value, value]) for name, value in numbers.items()}
    pair["noise"] = torch.cat([numbers["noise"], mirrored])
    both = torch.cat([x0, 2 * mean - x0])

    def gradient(flow_map: Map) -> float:
        shift = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        loss(objective, flow_map, both, pair, shift).loss.mean().backward()
        assert shift.grad is not None
        return float(shift.grad.abs().max())

    assert gradient(exact(flow)) < 0.02 * gradient(velocity_only(flow))
    assert gradient(velocity_only(flow)) > 1e-3


# Shortcut models


@each_precise_flow
def test_two_halves_of_an_exact_step_are_the_whole(flow: ExactFlow) -> None:
    x = Random(24).normal(2)
    t = torch.tensor([1.0, 0.75, 0.5], dtype=torch.float64).repeat(8)
    length = torch.tensor([1.0, 0.5, 0.25], dtype=torch.float64).repeat(8)

    def u(flow_map: Map) -> Map:
        return lambda x, t, s: (x - flow_map(x, t, s)) / t[:, None]

    whole = u(exact(flow))(x, t, t - length)
    target = self_consistency_target(u(exact(flow)), x, t, length, finest=128)
    torch.testing.assert_close(target, whole, atol=1e-3, rtol=0)
    of_velocity = self_consistency_target(u(velocity_only(flow)), x, t, length, finest=128)
    assert (of_velocity - whole).abs().max() > 0.1


def test_the_finest_halves_are_asked_for_as_velocities() -> None:
    asked = []

    def u(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        asked.append((t, s))
        return x

    t = torch.tensor([0.5, 0.5])
    self_consistency_target(u, torch.ones(2, 1), t, torch.tensor([0.25, 0.5]), finest=8)
    (first_t, first_s), (second_t, second_s) = asked
    assert (first_t - first_s).tolist() == [0, 0.25]
    assert second_t.tolist() == [0.375, 0.25]
    assert (second_t - second_s).tolist() == [0, 0.25]


def test_dyadic_steps_have_every_length_as_often_and_every_place() -> None:
    random = Random(14_000)
    t, length = dyadic_steps(*random.uniform(2).unbind(1), finest=128)
    lengths, counts = length.unique(return_counts=True)
    assert lengths.tolist() == [2.0**-k for k in range(6, -1, -1)]
    assert (counts - 2000).abs().max() < 6 * 2000**0.5
    assert torch.equal(t / length, (t / length).round())
    assert (t - length).min() == 0
    assert t.max() == 1
    assert len(t[length == 1 / 64].unique()) == 64


# MeanFlow


@each_precise_flow
def test_the_identity_holds_for_the_exact_average_velocity_alone(flow: ExactFlow) -> None:
    random = Random(24)
    x, (t, s) = random.normal(2), (0.1 + 0.9 * random.uniform(2)).sort(1, True).values.unbind(1)
    velocity = (x - flow.mean(x, t)) / t[:, None]

    def residual(flow_map: Map) -> Tensor:
        def u(x: Tensor, t: Tensor) -> Tensor:
            return (x - flow_map(x, t, s)) / t[:, None]

        value, slope = forward_derivative(u, (x, t), (velocity, torch.ones_like(t)))
        return (mean_flow_target(velocity, slope, t, s) - value).abs().max()

    assert residual(exact(flow)) < 5e-3
    assert residual(velocity_only(flow)) > 0.05
    assert residual(too_far(flow)) > 0.05


def test_times_of_a_mean_flow_are_in_order_and_mostly_equal() -> None:
    objective = MeanFlowObjective()
    _, numbers = batch(objective, GaussianFlow(), 4000)
    t, s = numbers["t"], numbers["s"]
    assert (s <= t).all()
    assert float((s == t).double().mean()) == pytest.approx(0.75, abs=0.03)


def test_the_adaptive_weight_has_no_gradient_and_evens_errors_out() -> None:
    error = torch.tensor([0.1, 10.0], requires_grad=True)
    weight = adaptive_weight(error, 1.0, 1e-3)
    assert not weight.requires_grad
    torch.testing.assert_close(weight * error, torch.ones(2), rtol=0.02, atol=0)
    assert torch.equal(adaptive_weight(error, 0.0, 1e-3), torch.ones(2))


# Inductive moment matching


class Way(Oracle):
    """The maps from a right one, at 0, to a wrong one, at 1; a gradient for each sample's position.

    As a network's, the targets are of the same position. The same samples under other labels
    arrive in the same places, which are computed once.
    """

    def __init__(self, right: Map, wrong: Map, at: float, count: int) -> None:
        self.right, self.wrong, self.at = right, wrong, at
        self.position = torch.full((count, 1), at, dtype=torch.float64, requires_grad=True)
        self.ends: dict[str, tuple[Tensor, Tensor]] = {}

    def with_gradient(
        self, x_t: Tensor, t: Tensor, xi: Tensor | None = None, s: Tensor | None = None
    ) -> Tensor:
        right, apart = self._ends("train", x_t, t, s)
        return right + self.position * apart

    def current(self, x_t: Tensor, t: Tensor, s: Tensor | None = None) -> Tensor:
        right, apart = self._ends("current", x_t, t, s)
        return right + self.at * apart

    def _ends(self, name: str, x_t: Tensor, t: Tensor, s: Tensor | None) -> tuple[Tensor, Tensor]:
        assert s is not None
        if name not in self.ends:
            right = self.right(x_t, t, s)
            self.ends[name] = right, self.wrong(x_t, t, s) - right
        return self.ends[name]


class Slope(NamedTuple):
    """d loss/d position on a `Way`, and its standard error: of all pairs, of j = k, of j != k."""

    whole: tuple[float, float]
    equal: tuple[float, float]
    unequal: tuple[float, float]


def slope(objective: InductiveObjective, way: Way, x0: Tensor, numbers: dict[str, Tensor]) -> Slope:
    """Pairs j = k are those that are left if each sample has a label of its own."""

    def by_group(given: dict[str, Tensor]) -> Tensor:
        terms = objective.evaluate(way, x0, given, x0, SCHEDULE)
        (found,) = torch.autograd.grad(terms.loss.sum() / objective.group, way.position)
        return found.unflatten(0, (-1, objective.group)).sum((1, 2))

    whole, equal = by_group(numbers), by_group(numbers | {"labels": torch.arange(len(x0))})
    parts = (whole, equal, whole - equal)
    return Slope(*((float(part.mean()), float(part.std()) / len(part) ** 0.5) for part in parts))


def vanishes(value: float, error: float) -> bool:
    return abs(value) < 3 * error


def rises(value: float, error: float) -> bool:
    return value > 5 * error


@pytest.mark.parametrize("wrong", [velocity_only, too_far])
def test_the_gradient_of_inductive_moment_matching_vanishes_at_the_flow_of_a_gaussian(
    wrong: Callable[[ExactFlow], Map],
) -> None:
    """Of the decrement k = 15: t - r is so small that nothing of the first order in it is seen."""
    flow, objective = FLOWS["gaussian"], InductiveObjective(decrement=15)
    x0, numbers = batch(objective, flow, 12_800)
    for at, expected in ((0.0, vanishes), (1.0, rises)):
        way = Way(exact(flow), wrong(flow), at, len(x0))
        assert expected(*slope(objective, way, x0, numbers).whole), at


def test_the_gradient_of_different_samples_vanishes_at_the_flow_of_a_mixture() -> None:
    """Of the pairs j != k, at any distance t - r; of those of one x_0 see the test below."""
    flow, objective = FLOWS["mixture"], InductiveObjective(group=8, decrement=6)
    x0, numbers = batch(objective, flow, 3200)
    for at, expected in ((0.0, vanishes), (1.0, rises)):
        way = Way(exact(flow), velocity_only(flow), at, len(x0))
        assert expected(*slope(objective, way, x0, numbers).unequal), at


def test_pairs_of_one_x0_move_the_optimum_on_a_skewed_posterior() -> None:
    """As stated in docs/rivals.md: E[d / |d|] of d = y_j - y'_j is 0 by symmetry alone."""
    flow, objective = FLOWS["mixture"], InductiveObjective()
    x0, numbers = batch(objective, flow, 4096)
    found = slope(objective, Way(exact(flow), velocity_only(flow), 0.0, len(x0)), x0, numbers)
    assert rises(*found.equal)
    assert rises(*found.whole)
    assert vanishes(*found.unequal)


def test_with_labels_the_flow_map_of_each_class_is_optimal_and_that_of_all_is_not() -> None:
    """Two Gaussians as classes; without labels the flow of both as one mixture matches as well."""
    classes = [GaussianFlow(centre=centre, variance=0.04) for centre in (1.5, -0.5)]
    centres = torch.tensor([[each.centre] * 2 for each in classes], dtype=torch.float64)
    half = torch.full((2,), 0.5, dtype=torch.float64)
    together = MixtureFlow(Mixture(half, centres, 0.08 * half), steps=8)
    objective, random = InductiveObjective(group=8, decrement=6), Random(3200)
    labels = (random.uniform() < 0.5).long()

    def chosen(values: Callable[[GaussianFlow], Tensor]) -> Tensor:
        return torch.where((labels == 0)[:, None], *(values(each) for each in classes))

    def of_label(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return chosen(lambda flow: straight_end(flow, x, t, s))

    x0 = chosen(lambda flow: flow.draw(random.count, random.generator))
    numbers = objective.numbers(random, x0)
    for at, expected in ((0.0, vanishes), (1.0, rises)):
        way = Way(of_label, exact(together), at, len(x0))
        found = slope(objective, way, x0, numbers | {"labels": labels})
        assert expected(*found.unequal), at
    without = slope(objective, Way(of_label, exact(together), 1.0, len(x0)), x0, numbers)
    assert vanishes(*without.unequal)


def test_samples_of_other_labels_do_not_act_on_each_other() -> None:
    random = Random(2)
    y, z = (random.normal(4, 3) for _ in range(2))
    labels, scale = torch.tensor([[0, 1, 0, 2], [2, 2, 1, 1]]), torch.full((2,), 0.7).double()
    y.requires_grad_()
    found = group_discrepancy(y, z, scale, labels)
    values = found.detach().tolist()
    for group in range(2):
        expected = 0.0
        for label in labels[group].unique():
            rows = labels[group] == label
            alone = group_discrepancy(
                y[None, group, rows], z[None, group, rows], scale[:1], labels[None, group, rows]
            )
            expected += float(alone.detach()) * int(rows.sum()) ** 2 / 16
        assert values[group] == pytest.approx(expected, rel=1e-9)
    (gradient,) = torch.autograd.grad(found[0], y)
    moved = y.detach().clone()
    moved[0, 1:] += 1.0  # but for the first, of label 0, and the third
    moved[0, 2] -= 1.0
    moved.requires_grad_()
    (again,) = torch.autograd.grad(group_discrepancy(moved, z, scale, labels)[0], moved)
    assert torch.equal(gradient[0, 0], again[0, 0])
    assert gradient[0, 0].abs().max() > 1e-3


@each_flow
@pytest.mark.parametrize("from_data", [True, False])
def test_the_exact_flow_map_matches_moments_and_a_mean_does_not(
    flow: ExactFlow, from_data: bool
) -> None:
    """With `from_data` the samples that arrive from r are those of the data, noised to s."""
    count = 400
    objective = InductiveObjective(group=count, decrement=0 if from_data else 12)
    random = Random(count)
    t = torch.full((count,), 0.9, dtype=torch.float64)
    numbers = {"t": t, "s": t / 18, "noise": random.normal(2)}
    x0 = flow.draw(count, random.generator)
    right = loss(objective, exact(flow), x0, numbers).confinement
    wrong = loss(objective, velocity_only(flow), x0, numbers).confinement
    assert right.shape == (count,)
    if from_data:
        assert right.max() < 4 / count
        assert wrong.min() > 4 * right.max()
    else:  # of a step so short both maps arrive in nearly one place; the gradient tells them apart
        assert right.max() < 1e-4


def test_the_loss_of_a_group_is_that_of_the_paper_term_by_term() -> None:
    flow, objective = GaussianFlow(), InductiveObjective(group=2, decrement=9)
    x0, numbers = batch(objective, flow, 6)
    found = loss(objective, velocity_only(flow), x0, numbers).loss
    for first in (0, 2, 4):
        t, s = float(numbers["t"][first]), float(numbers["s"][first])
        nearer = t / (1 - t) - 160 / 2**9
        r = max(s, nearer / (1 + nearer))

        def arrivals(time: float, s: float = s, first: int = first) -> list[Tensor]:
            rows = slice(first, first + 2)
            x = (1 - time) * x0[rows] + time * numbers["noise"][rows]
            velocity = (x - flow.mean(x, torch.full((2,), time).double())) / time
            return list(x - (time - s) * velocity)

        def kernel(x: Tensor, y: Tensor, t: float = t, s: float = s) -> float:
            return math.exp(-max(float((x - y).norm()), 1e-8) / (2 * (t - s)))  # of D = 2

        y, z = arrivals(t), arrivals(r)
        error = sum(kernel(a, b) for a in y for b in y) + sum(kernel(a, b) for a in z for b in z)
        error = (error - 2 * sum(kernel(a, b) for a in y for b in z)) / 4
        weight = (1 - t) / ((1 - t) * t * ((1 - t) ** 2 + t**2))
        weight /= 1 + ((1 - t) / t) ** 2 * math.exp(-5.0)
        expected = [weight * error] * 2
        assert found[first : first + 2].tolist() == pytest.approx(expected, rel=1e-6, abs=1e-12)
    assert found.max() > 1e-3


def test_the_discrepancy_is_that_of_a_v_statistic() -> None:
    x, y = torch.tensor([[[0.0], [3.0]]]), torch.tensor([[[1.0], [3.0]]])
    scale = torch.tensor([2.0])
    kernel = laplace_kernel(x, y, scale)
    expected = torch.exp(-torch.tensor([[[1.0, 3.0], [2.0, 0.0]]]) / 2)
    torch.testing.assert_close(kernel, expected)
    within = (2 + 2 * torch.exp(torch.tensor(-3 / 2)) + 2 + 2 * torch.exp(torch.tensor(-1.0))) / 4
    value = group_discrepancy(x, y, scale, torch.zeros(1, 2))
    torch.testing.assert_close(value, (within - 2 * expected.mean())[None])
    assert float(group_discrepancy(x, x.flip(1), scale, torch.zeros(1, 2))) == pytest.approx(
        0, abs=1e-7
    )
    wide = laplace_kernel(x.expand(1, 2, 5), y.expand(1, 2, 5), scale)  # distances over D
    torch.testing.assert_close(wide, expected ** (5**0.5 / 5))


def test_equal_samples_have_a_finite_gradient() -> None:
    x = torch.ones(1, 3, 4, requires_grad=True)
    group_discrepancy(x, torch.ones(1, 3, 4), torch.ones(1), torch.zeros(1, 3)).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.zeros_like(x))


def test_the_nearer_time_is_a_constant_decrement_of_eta() -> None:
    t = torch.linspace(0.01, 1, 100, dtype=torch.float64)
    s = 0.2 * t
    r = nearer_time(t, s, 0.04)
    assert torch.isfinite(r).all()
    assert ((r >= s) & (r < t)).all()
    inside = (r > s) & (t < LARGEST_ETA / (1 + LARGEST_ETA))
    eta = (t / (1 - t) - r / (1 - r))[inside]
    torch.testing.assert_close(eta, torch.full_like(eta, 0.04))
    assert int(inside.sum()) > 50


def test_the_weight_has_the_derivative_of_log_snr() -> None:
    t = torch.linspace(0.02, 0.98, 25, dtype=torch.float64, requires_grad=True)
    objective = InductiveObjective(weighting_bias=4.0, weighting_power=2.0)
    log_snr = SCHEDULE.log_snr(t)
    (falling,) = torch.autograd.grad(log_snr.sum(), t)
    alpha, sigma = 1 - t, t
    expected = 0.5 * torch.sigmoid(4.0 - log_snr) * -falling * alpha**2 / (alpha**2 + sigma**2)
    torch.testing.assert_close(objective.weight(t, SCHEDULE), expected)
    assert torch.equal(InductiveObjective(weighting_bias=None).weight(t, SCHEDULE), 0 * t + 1)


def test_a_group_shares_its_times() -> None:
    objective = InductiveObjective(group=4)
    _, numbers = batch(objective, GaussianFlow(), 64)
    for name in ("t", "s"):
        groups = numbers[name].unflatten(0, (-1, 4))
        assert torch.equal(groups, groups[:, :1].expand_as(groups))
        assert len(groups[:, 0].unique()) == 16
    assert (numbers["s"] < numbers["t"]).all()


@pytest.mark.parametrize(
    ("kind", "settings", "named"),
    [
        (ShortcutObjective, {"finest": 100}, "finest"),
        (ShortcutObjective, {"consistency_share": 0.0}, "consistency_share"),
        (ShortcutObjective, {"targets": 2}, "targets"),
        (MeanFlowObjective, {"velocity_share": 1.0}, "velocity_share"),
        (MeanFlowObjective, {"adaptive_floor": 0.0}, "adaptive_floor"),
        (InductiveObjective, {"group": 1}, "group"),
        (InductiveObjective, {"decrement": -1}, "decrement"),
    ],
)
def test_numbers_that_make_no_loss_are_named(
    kind: type[FlowMapObjective], settings: dict[str, float], named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        kind(**settings)
