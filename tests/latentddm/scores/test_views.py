"""Views: each is its definition, several are a weighted sum, and one more is a class and a line."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any, ClassVar, Literal

import pytest
import torch
from score_definitions import by_loops, draws_and_target, power_distance, whole_and_position
from torch import Tensor

from latentddm.engine.config import build, to_plain
from latentddm.engine.errors import UserError
from latentddm.scores import EnergyConfig, ScoreConfig, ScoreTerms
from latentddm.scores.score import antithetic_pairs
from latentddm.scores.views import VIEWS, Differences, View, ViewConfig, ViewInputs
from latentddm.scores.views.whole import WholeConfig

T = torch.tensor([0.3, 0.8], dtype=torch.float64)


def test_the_view_per_position_is_a_loop_over_positions() -> None:
    draws, target = draws_and_target(2, 3, 4, 2, 3)
    config = EnergyConfig(beta=1.3, beta_data=0.6, views={"position": 1.0})
    terms = config.make()(draws, target, T)
    for i in range(2):
        beta = 0.6 + 0.7 * float(T[i])
        scores = []
        for row, column in product(range(2), range(3)):
            here = draws[i, :, :, row, column], target[i, :, row, column]
            scores.append(4 ** (-beta / 2) * by_loops(*here, power_distance(beta), 0.9))
        assert float(terms.score(0.9)[i]) == pytest.approx(sum(scores) / 6, abs=1e-12)


def test_the_view_of_the_whole_divides_by_the_whole_dimension() -> None:
    draws, target = draws_and_target(2, 3, 4, 2, 3)
    terms = EnergyConfig(beta=1.4, views={"whole": 1.0}).make()(draws, target, T)
    for i in range(2):
        expected = 24 ** (-0.7) * by_loops(draws[i], target[i], power_distance(1.4), 1.0)
        assert float(terms.score(1.0)[i]) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize(("beta", "beta_data"), [(1.0, None), (0.1, 1.0), (1.3, 2.0)])
def test_half_whole_half_position_is_the_score_of_the_runs_before_views(
    beta: float, beta_data: float | None, antithetic: bool
) -> None:
    """(1 - share) rms^beta + share mean_p rms_p^beta at share 1/2, with one and several targets."""
    draws, target = draws_and_target(2, 4, 3, 2, 2)
    _, other = draws_and_target(2, 4, 3, 2, 2, seed=1)
    score = EnergyConfig(beta=beta, beta_data=beta_data).make()
    one = score(draws, target, T, antithetic)
    both = score(draws, torch.stack([target, other], dim=1), T, antithetic)
    for i in range(2):
        at = beta if beta_data is None else beta_data + (beta - beta_data) * float(T[i])
        distance = whole_and_position(at, 0.5, 0.5)
        pairs = [(j, k) for j, k in product(range(4), repeat=2) if j != k]
        if antithetic:
            pairs = [(j, k) for j, k in pairs if abs(j - k) != 2]
        interaction = sum(distance(draws[i, j], draws[i, k]) for j, k in pairs) / len(pairs)
        to_target, to_other = (
            sum(distance(draw, y[i]) for draw in draws[i]) / 4 for y in (target, other)
        )
        assert float(one.confinement[i]) == pytest.approx(to_target, abs=1e-12)
        assert float(both.confinement[i]) == pytest.approx((to_target + to_other) / 2, abs=1e-12)
        assert float(one.interaction[i]) == pytest.approx(interaction, abs=1e-12)
        assert float(both.interaction[i]) == pytest.approx(interaction, abs=1e-12)


def test_views_are_weighted_and_a_weight_of_zero_leaves_one_out() -> None:
    draws, target = draws_and_target(2, 3, 4, 2, 3)

    def terms(**views: float) -> tuple[Tensor, Tensor]:
        return EnergyConfig(beta=1.3, views=views).make()(draws, target, T)

    whole, position = terms(whole=1.0), terms(position=1.0)
    for mixed, one, other in zip(terms(whole=0.7, position=0.3), whole, position, strict=True):
        torch.testing.assert_close(mixed, 0.7 * one + 0.3 * other)
    for alone, one in zip(terms(whole=1.0, position=0.0), whole, strict=True):
        assert torch.equal(alone, one)


@pytest.mark.parametrize("beta", [0.1, 1.0, 2.0])
def test_views_agree_in_scale(beta: float) -> None:
    """All are mean squares: equal where every difference has one size, close for noise."""
    target = torch.zeros(4, 64, 8, 8, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(4, 2, 64, 8, 8, generator=generator, dtype=torch.float64)
    t = torch.full((4,), 0.5, dtype=torch.float64)
    for draws, tolerance in ((0.3 * noise.sign(), 1e-12), (0.3 * noise, 0.02)):
        for name in ("whole", "position"):
            found = EnergyConfig(beta=beta, views={name: 1.0}).make()(draws, target, t)
            expected = torch.full((4,), 0.3**beta, dtype=torch.float64)
            torch.testing.assert_close(found.confinement, expected, rtol=3 * tolerance, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scores_of_a_half_precision_network_are_taken_in_float32(dtype: torch.dtype) -> None:
    draws, target = (x.to(dtype) for x in draws_and_target(2, 4, 3, 2, 2))
    score = EnergyConfig(beta=0.1, beta_data=1.0).make()
    found = score(draws, target, T.to(dtype))
    exact = score(draws.double(), target.double(), T.to(dtype).double())
    for one, other in zip(found, exact, strict=True):
        assert one.dtype == torch.float32
        assert other.dtype == torch.float64
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-6)


@dataclass(frozen=True, kw_only=True)
class SteepConfig(ViewConfig):
    kind: Literal["steep"] = "steep"
    steepness: float = 1.0

    def make(self, inputs: ViewInputs | None = None) -> View:
        return Steep(self.steepness)


class Steep(View):
    """Differences between neighbours in a row: a linear view of the samples themselves."""

    received: ClassVar[list[Differences]] = []  # a record for the test below

    def __init__(self, steepness: float) -> None:
        self.steepness = steepness

    def mean_squares(self, differences: Differences) -> Tensor:
        self.received.append(differences)
        return self.steepness * differences.values.diff(dim=-1).square().mean(2).flatten(2)


@dataclass(frozen=True, kw_only=True)
class AngleConfig(ViewConfig):
    kind: Literal["angle"] = "angle"

    def make(self, inputs: ViewInputs | None = None) -> View:
        return Angle()


class Angle(View):
    """Nonlinear and dependent on t: sin((1 + t) x), one spot."""

    def features(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.sin((1 + t.reshape(-1, 1, 1, 1, 1)) * x)

    def mean_squares(self, differences: Differences) -> Tensor:
        return differences.mean_squares_over_channels.mean(2, keepdim=True)


@pytest.fixture
def with_mine(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line for each view."""
    monkeypatch.setitem(VIEWS, "steep", SteepConfig)
    monkeypatch.setitem(VIEWS, "angle", AngleConfig)
    monkeypatch.setattr(Steep, "received", [])


def test_one_more_view_is_a_class_and_a_line(with_mine: None) -> None:
    views = {"whole": 0.5, "steep": {"weight": 0.3, "steepness": 4.0}, "angle": 0.2}
    config = build(ScoreConfig, {"beta": 1.0, "views": views}, "c.yaml", "score.")
    draws, target = draws_and_target(2, 3, 2, 3, 3)
    draws.requires_grad_()
    terms = config.make()(draws, target, T)
    for i in range(2):
        angle = 1 + float(T[i])

        def edge(x: Tensor, y: Tensor) -> float:
            return float((x - y).diff(dim=-1).square().mean(0).mul(4).sqrt().mean())

        def sine(x: Tensor, y: Tensor, angle: float = angle) -> float:
            return float((torch.sin(angle * x) - torch.sin(angle * y)).square().mean().sqrt())

        root_mean_square = whole_and_position(1.0, 1.0, 0.0)
        expected = sum(
            weight * by_loops(draws[i].detach(), target[i], distance, 0.8)
            for weight, distance in ((0.5, root_mean_square), (0.3, edge), (0.2, sine))
        )
        assert terms.score(0.8)[i].item() == pytest.approx(expected, abs=1e-12)
    score = config.make()
    assert torch.autograd.gradcheck(lambda x: score(x, target, T).score(0.8), draws)


def test_views_of_the_samples_themselves_share_one_computation(with_mine: None) -> None:
    again = SteepConfig(weight=0.5)
    draws, target = draws_and_target(2, 3, 2, 3, 3)
    EnergyConfig(views={"steep": 0.3, "angle": 0.2, "again": again}).make()(draws, target, T)
    first, second = Steep.received
    assert first is second


def terms_of(**views: Any) -> ScoreTerms:
    """With six samples, so that parts of the batch can be left out."""
    draws, target = draws_and_target(6, 4, 3, 2, 2)
    score = build(ScoreConfig, {"beta": 1.2, "views": views}, "c.yaml").make()
    return score(draws, target, torch.linspace(0.05, 0.8, 6, dtype=torch.float64))


def test_a_weight_is_linear_in_time_from_data_to_noise() -> None:
    whole, position = terms_of(whole=1.0), terms_of(position=1.0)
    found = terms_of(whole=0.5, position={"weight": 0.25, "weight_data": 1.0})
    weights = 1.0 - 0.75 * torch.linspace(0.05, 0.8, 6, dtype=torch.float64)
    for mixed, one, other in zip(found, whole, position, strict=True):
        torch.testing.assert_close(mixed, 0.5 * one + weights * other)


@pytest.mark.parametrize("with_whole", [0.5, 0.0])
def test_a_view_can_be_for_noisy_times_and_for_a_share_of_the_batch(with_whole: float) -> None:
    """Times .05, .2, .35, .5, .65, .8; of a share of a half every second sample is compared."""
    whole, position = terms_of(whole=1.0), terms_of(position=1.0)
    late = terms_of(whole=with_whole, position={"weight": 0.5, "t_min": 0.35})
    some = terms_of(whole=with_whole, position={"weight": 0.5, "share": 0.5})
    both = terms_of(whole=with_whole, position={"weight": 0.5, "share": 0.5, "t_min": 0.5})
    none = terms_of(whole=with_whole, position={"weight": 0.5, "t_min": 0.9})
    for found, factors in (
        (late, [0, 0, 0, 0.5, 0.5, 0.5]),
        (some, [0, 1, 0, 1, 0, 1]),
        (both, [0, 0, 0, 0, 0, 1]),
        (none, [0] * 6),
    ):
        factor = torch.tensor(factors, dtype=torch.float64)
        for mixed, one, other in zip(found, whole, position, strict=True):
            torch.testing.assert_close(mixed, with_whole * one + factor * other)


def test_a_micro_batch_without_a_compared_sample_has_a_gradient_of_zero() -> None:
    draws, target = draws_and_target(3, 2, 3, 2, 2)
    draws.requires_grad_()
    score = EnergyConfig(views={"position": VIEWS["position"](t_min=0.9)}).make()  # type: ignore[call-arg]
    terms = score(draws, target, torch.full((3,), 0.5))
    terms.score(1.0).mean().backward()
    assert draws.grad is not None
    assert not draws.grad.any()


def test_a_share_of_which_a_micro_batch_has_no_whole_number_is_refused() -> None:
    """Else the samples that are compared would depend on the number of parts of a batch."""
    score = EnergyConfig(views={"whole": 0.5, "position": VIEWS["position"](share=0.3)})  # type: ignore[call-arg]
    score.check_micro_batch(10)
    with pytest.raises(
        ValueError, match=r"share of the view 'position' is 0.3, of which 16 images"
    ):
        score.check_micro_batch(16)
    rows = [VIEWS["position"](share=0.3).rows(torch.ones(count)) for count in (20, 10)]  # type: ignore[call-arg]
    assert rows[0] is not None
    assert rows[1] is not None
    assert rows[0].tolist() == [*rows[1].tolist(), *(rows[1] + 10).tolist()]


def test_a_share_keeps_the_mean_of_the_score() -> None:
    for share in (0.1, 0.3, 0.7):
        config = WholeConfig(share=share)
        rows = config.rows(torch.full((1000,), 0.5))
        assert rows is not None
        assert len(rows) * float(config.weight_at(torch.ones(1))) == pytest.approx(1000, rel=1e-6)


def test_a_kind_can_stand_several_times_under_names_of_its_own() -> None:
    views = {"whole": 0.5, "early": {"kind": "position", "weight": 0.2}, "position": 0.3}
    config = build(ScoreConfig, {"beta": 1.2, "views": views}, "c.yaml")
    assert build(ScoreConfig, to_plain(config), "config.yaml") == config
    for found, expected in zip(terms_of(**views), terms_of(whole=0.5, position=0.5), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("view", "said"),
    [
        ({"bandz": {"weight": 1}}, r"'score\.views\.bandz\.kind' .*whole, position.*'bandz'"),
        ({"whole": {"wieght": 1}}, r"'score\.views\.whole\.wieght'.*'weight'"),
        ({"whole": {"weight": -1}}, r"score\.views\.whole: weight .*-1"),
        ({"whole": {"weight_data": -2}}, r"score\.views\.whole: weight_data .*-2"),
        ({"whole": {"t_min": 1}}, r"score\.views\.whole: t_min .*1"),
        ({"whole": {"share": 0}}, r"score\.views\.whole: share .*0"),
        ({"whole": "much"}, r"'score\.views\.whole' must be a number.*'much'"),
        ({"whole": {"weight": 0}}, "score: views .*0"),
    ],
)
def test_a_wrong_setting_of_a_view_is_one_sentence(view: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        build(ScoreConfig, {"views": view}, "c.yaml", "score.")


def test_antithetic_pairs_are_opposite_and_do_not_interact() -> None:
    xi = torch.randn(2, 2, 3, 2, 2, generator=torch.Generator().manual_seed(0)).double()
    pairs = antithetic_pairs(xi)
    assert torch.equal(pairs[:, :2], xi)
    assert torch.equal(pairs[:, 2:], -xi)
    _, target = draws_and_target(2, 1, 3, 2, 2)
    score = EnergyConfig().make()
    found = score(pairs, target, T, antithetic=True).interaction
    apart = [score(pairs[:, [j, k]], target, T) for j, k in ((0, 1), (1, 2), (2, 3), (3, 0))]
    torch.testing.assert_close(found, torch.stack([each.interaction for each in apart]).mean(0))
