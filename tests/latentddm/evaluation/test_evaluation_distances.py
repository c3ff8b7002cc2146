"""Distances against closed forms, brute force and theoretical values."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from latentddm.engine.errors import UserError
from latentddm.evaluation import pairs
from latentddm.evaluation.distances import (
    energy_distance,
    energy_estimate,
    frechet_distance,
    frechet_estimate,
    kid,
    kid_estimate,
    median_distance,
    mmd2,
    mmd2_estimate,
    moments,
    sliced_wasserstein,
    sliced_wasserstein_estimate,
)
from latentddm.evaluation.protocol import Estimate, bootstrap_interval


def normal(rows: int, columns: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64)


def covariance(dimension: int, rank: int, seed: int) -> Tensor:
    root = normal(dimension, rank, seed)
    return root @ root.T


class TestFrechet:
    def test_equals_the_formula_with_scipys_matrix_root(self) -> None:
        linalg = pytest.importorskip("scipy.linalg")
        mean1, mean2 = normal(2, 7, 1)
        cov1, cov2 = covariance(7, 9, 2), covariance(7, 9, 3)
        root = np.real(linalg.sqrtm((cov1 @ cov2).numpy()))
        expected = (mean1 - mean2).square().sum() + (cov1 + cov2).trace() - 2 * np.trace(root)
        assert frechet_distance(mean1, cov1, mean2, cov2) == pytest.approx(
            float(expected), abs=1e-6
        )

    def test_has_the_closed_form_of_gaussians_that_commute(self) -> None:
        basis = torch.linalg.qr(normal(5, 5)).Q
        spread1, spread2 = torch.tensor([[1, 2, 3, 4, 5], [5, 1, 0, 2, 7]]).double()
        cov1, cov2 = (basis @ torch.diag(s**2) @ basis.T for s in (spread1, spread2))
        shift = torch.arange(5).double()
        expected = float(shift.square().sum() + (spread1 - spread2).square().sum())
        assert frechet_distance(shift, cov1, 0 * shift, cov2) == pytest.approx(expected, abs=1e-6)

    @pytest.mark.parametrize("rows", [40, 500])
    def test_of_a_set_with_itself_is_zero_even_where_the_covariance_is_singular(
        self, rows: int
    ) -> None:
        features = 10 * normal(rows, 96)  # 40 rows span less than half of 96 dimensions
        features[:, 50:] = features[:, :46]
        assert abs(frechet_distance(*moments(features), *moments(features))) < 1e-3
        assert abs(frechet_estimate(features, features).value) < 1e-3

    def test_is_symmetric_and_an_estimate_agrees_with_the_formula(self) -> None:
        a, b = normal(60, 80, 1), 2 * normal(90, 80, 2) + 0.3  # fewer rows than dimensions in a
        plain = frechet_distance(*moments(a), *moments(b))
        assert frechet_distance(*moments(b), *moments(a)) == pytest.approx(plain, rel=1e-6)
        assert frechet_estimate(a, b).value == pytest.approx(plain, rel=1e-6)

    def test_moments_are_those_of_numpy(self) -> None:
        features = normal(300, 4).float()
        mean, cov = moments(features)
        torch.testing.assert_close(cov, torch.from_numpy(np.cov(features.double().numpy().T)))
        torch.testing.assert_close(mean, features.double().mean(0))


class TestPairs:
    def test_energy_distance_equals_a_double_loop(self) -> None:
        a, b = normal(9, 3, 1), normal(7, 3, 2) + 0.5
        across = sum(float((x - y).norm()) for x in a for y in b) / (9 * 7)
        within = [
            sum(float((x - y).norm()) for x in s for y in s) / (len(s) * (len(s) - 1))
            for s in (a, b)
        ]
        assert energy_distance(a, b) == pytest.approx(2 * across - sum(within), abs=1e-12)

    @pytest.mark.parametrize("unbiased", [True, False])
    @pytest.mark.parametrize(
        ("kernel", "shape"),
        [
            ("rbf", lambda r, h: math.exp(-(r**2) / (2 * h**2))),
            ("imq", lambda r, h: (1 + r**2 / h**2) ** -0.5),
            ("exponential", lambda r, h: math.exp(-r / h)),
        ],
    )
    def test_mmd_equals_a_double_loop(self, kernel: str, shape: object, unbiased: bool) -> None:
        a, b = normal(8, 2, 1), normal(6, 2, 2) + 1

        def mean(x: Tensor, y: Tensor, same: bool) -> float:
            values = [
                shape(float((u - v).norm()), 1.7)  # type: ignore[operator]
                for i, u in enumerate(x)
                for j, v in enumerate(y)
                if not (same and i == j)
            ]
            return sum(values) / len(values)

        expected = mean(a, a, unbiased) + mean(b, b, unbiased) - 2 * mean(a, b, False)
        value = mmd2(a, b, kernel=kernel, bandwidth=1.7, unbiased=unbiased)  # type: ignore[arg-type]
        assert value == pytest.approx(expected, abs=1e-12)

    def test_kernel_distance_equals_a_double_loop_of_its_cubic_kernel(self) -> None:
        a, b = normal(8, 4, 1), normal(6, 4, 2) + 1

        def mean(x: Tensor, y: Tensor, same: bool) -> float:
            pairs_ = [(i, j) for i in range(len(x)) for j in range(len(y)) if not same or i != j]
            return sum((float(x[i] @ y[j]) / 4 + 1) ** 3 for i, j in pairs_) / len(pairs_)

        expected = mean(a, a, True) + mean(b, b, True) - 2 * mean(a, b, False)
        assert kid(a, b) == pytest.approx(expected, abs=1e-12)

    def test_blocks_change_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        a, b = normal(101, 5, 1), normal(57, 5, 2)
        before = energy_distance(a, b), mmd2(a, b, unbiased=False), moments(a)[1]
        monkeypatch.setattr(pairs, "BLOCK_ELEMENTS", 300)
        after = energy_distance(a, b), mmd2(a, b, unbiased=False), moments(a)[1]
        for one, other in zip(before, after, strict=True):
            torch.testing.assert_close(one, other, atol=1e-12, rtol=0)

    def test_a_large_common_shift_costs_no_digits(self) -> None:
        a, b = normal(50, 6, 1), normal(50, 6, 2)
        shifted = energy_distance(a + 1e6, b + 1e6)
        assert shifted == pytest.approx(energy_distance(a, b), abs=1e-8)

    def test_the_papers_target_has_the_known_floor_between_two_samples(self) -> None:
        # Two samples of n of the two-Gaussian mixture, RBF with h = 1: E k = 1/3, so the biased
        # estimate is 2 (1 - 1/3) / n on average, 3.3e-4 for 4096, where the unbiased one is 0.
        def mixture(rows: int, seed: int) -> Tensor:
            points = 0.5 * normal(rows, 2, seed)
            side = torch.randint(0, 2, (rows,), generator=torch.Generator().manual_seed(seed + 99))
            return points + torch.stack([6.0 * side - 3, torch.full((rows,), 3.0)], dim=1)

        a, b = mixture(4096, 1), mixture(4096, 2)
        floor = mmd2(a, b, unbiased=False) - mmd2(a, b)
        assert floor == pytest.approx(3.3e-4, abs=1e-5)
        small = [(mixture(256, 2 * seed), mixture(256, 2 * seed + 1)) for seed in range(60)]
        biased = [mmd2(a, b, unbiased=False) for a, b in small]
        unbiased = [mmd2(a, b) for a, b in small]
        error = np.std(unbiased) / 60**0.5
        assert abs(np.mean(unbiased)) < 3 * error
        assert abs(np.mean(biased) - 2 * (2 / 3) / 256) < 3 * error

    def test_unbiased_kernel_distance_is_near_zero_over_splits_and_not_always_positive(
        self,
    ) -> None:
        features = normal(400, 16)
        values = []
        for seed in range(20):
            order = torch.randperm(400, generator=torch.Generator().manual_seed(seed))
            values.append(kid(features[order[:200]], features[order[200:]]))
        assert min(values) < 0 < max(values)
        error = np.std(values) / 20**0.5
        assert abs(np.mean(values)) < 4 * error
        assert kid(features[:200] + 0.5, features[200:]) > 20 * np.std(values)

    def test_subsets_of_the_kernel_distance_agree_with_the_whole(self) -> None:
        a, b = normal(600, 8, 1) + 0.5, normal(700, 8, 2)
        whole = kid(a, b)
        parts = kid(a, b, subsets=60, subset_size=200, seed=3)
        assert parts == pytest.approx(whole, rel=0.05)
        assert parts == kid(a, b, subsets=60, subset_size=200, seed=3)
        assert parts != kid(a, b, subsets=60, subset_size=200, seed=4)

    def test_the_median_distance_is_that_of_all_pairs(self) -> None:
        points = torch.tensor([[0.0], [1.0], [3.0]])  # distances 1, 2, 3
        assert median_distance(points) == 2
        with pytest.raises(UserError, match="bandwidth"):
            median_distance(torch.ones(5, 2))


class TestSliced:
    def test_in_one_dimension_is_the_distance_of_sorted_values(self) -> None:
        a, b = normal(50, 1, 1), 2 * normal(50, 1, 2) + 1
        expected = (a.sort(0).values - b.sort(0).values).square().mean().sqrt()
        assert sliced_wasserstein(a, b) == pytest.approx(float(expected), rel=1e-12)

    def test_is_exact_for_sets_of_different_sizes(self) -> None:
        # 0, 3 against 0, 0, 6: of the mass 1 a third moves 0 -> 0, a sixth 0 -> 0, a sixth 3 -> 0
        # and a third 3 -> 6: the cost is 9 / 6 + 9 / 3.
        a, b = torch.tensor([[0.0], [3.0]]), torch.tensor([[0.0], [0.0], [6.0]])
        assert sliced_wasserstein(a, b) == pytest.approx(4.5**0.5, rel=1e-12)

    def test_repeating_every_row_changes_nothing(self) -> None:
        a, b = normal(40, 5, 1), normal(40, 5, 2)
        repeated = b.repeat_interleave(3, dim=0)
        assert sliced_wasserstein(a, repeated) == pytest.approx(sliced_wasserstein(a, b), rel=1e-9)

    def test_a_shift_costs_its_mean_projection(self) -> None:
        a = normal(200, 10)
        shift = 3 * torch.ones(10).double()
        # E (u . s)^2 = |s|^2 / D over directions u of the sphere.
        expected = 3.0
        assert sliced_wasserstein(a + shift, a, projections=4000) == pytest.approx(
            expected, rel=0.05
        )


class TestIntervals:
    @pytest.mark.parametrize(
        "estimator",
        [
            frechet_estimate,
            energy_estimate,
            sliced_wasserstein_estimate,
            kid_estimate,
            partial(mmd2_estimate, bandwidth=2.0),
        ],
    )
    def test_influences_predict_the_effect_of_doubling_a_row(self, estimator: object) -> None:
        a, b = normal(300, 3, 1) * 1.5 + 1, normal(400, 3, 2)
        base: Estimate = estimator(a, b)  # type: ignore[operator]
        changes, predictions = [], []
        for row in range(0, 300, 20):
            doubled = torch.cat([a, a[row : row + 1]])
            changes.append(estimator(doubled, b).value - base.value)  # type: ignore[operator]
            predictions.append(float(base.influence[row]) / 301)
        assert np.corrcoef(changes, predictions)[0, 1] > 0.99
        # The rest is the change of the estimator's bias between 300 and 301 rows.
        assert np.std(np.subtract(changes, predictions)) < 0.15 * np.std(changes)

    @pytest.mark.parametrize("estimator", [frechet_estimate, energy_estimate])
    def test_a_95_percent_interval_contains_the_mean_value_about_that_often(
        self, estimator: object
    ) -> None:
        reference = normal(400, 2, 999)
        estimates = [estimator(normal(100, 2, s) + 1, reference) for s in range(100)]  # type: ignore[operator]
        truth = np.mean([estimate.value for estimate in estimates])
        held = 0
        for estimate in estimates:
            low, high = bootstrap_interval(estimate)
            assert low < estimate.value < high
            held += low <= truth <= high
        assert 0.88 <= held / 100 <= 0.99

    def test_is_seeded(self) -> None:
        estimate = energy_estimate(normal(50, 2, 1), normal(50, 2, 2))
        assert bootstrap_interval(estimate, 1) == bootstrap_interval(estimate, 1)
        assert bootstrap_interval(estimate, 1) != bootstrap_interval(estimate, 2)


@pytest.mark.parametrize("distance", [frechet_estimate, energy_distance, mmd2, kid])
def test_one_row_is_refused_on_either_side(distance: object) -> None:
    one, many = torch.zeros(1, 3), torch.zeros(5, 3)
    for sets in ((one, many), (many, one)):
        with pytest.raises(UserError, match=r"N >= 2, not \[1, 3\]"):
            distance(*sets)  # type: ignore[operator]
    with pytest.raises(UserError, match=r"N >= 1, not \[0, 3\]"):
        sliced_wasserstein(many, many[:0])


def test_a_kernel_that_does_not_exist_is_refused() -> None:
    with pytest.raises(UserError, match=r"'cubic'.*rbf, imq, exponential"):
        mmd2(normal(5, 2), normal(5, 2), kernel="cubic")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"bandwidth.*0\.0"):
        mmd2(normal(5, 2), normal(5, 2), bandwidth=0.0)
