"""Kernel scores equal their definitions, and tend to energy scores for a large bandwidth."""

from __future__ import annotations

import pytest
import torch
from score_definitions import by_loops, draws_and_target, kernel_distance

from latentddm.scores import EnergyConfig, KernelConfig, energy_score, kernel_score
from latentddm.scores.kernels import KERNELS

LIMITS = [("rbf", 2.0), ("imq", 2.0), ("exponential", 1.0)]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("m", [1, 3])
def test_kernel_score_is_its_double_loop(kernel: str, m: int) -> None:
    draws, target = draws_and_target(3, m, 2, 3)
    for h in (0.5, 2.0):
        found = kernel_score(draws, target, kernel, h).tolist()
        distance = kernel_distance(kernel, h)
        expected = [by_loops(one, y, distance, 1.0) for one, y in zip(draws, target, strict=True)]
        assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("kernel", KERNELS)
def test_in_training_the_bandwidth_is_in_units_of_the_root_mean_square(kernel: str) -> None:
    draws, target = draws_and_target(2, 4, 3, 2, 2)
    t = torch.tensor([0.2, 0.9], dtype=torch.float64)
    for views, places in (({"whole": 1.0}, [slice(None)]), ({"position": 1.0}, range(4))):
        score = KernelConfig(kernel=kernel, bandwidth=0.8, views=views).make()
        found = score(draws, target, t).score(0.6)
        for i in range(2):
            here, y = draws[i].flatten(2), target[i].flatten(1)
            parts = [(here[..., place], y[..., place]) for place in places]
            dimension = parts[0][1].numel()
            expected = [
                by_loops(one, other, kernel_distance(kernel, 0.8, dimension), 0.6)
                for one, other in parts
            ]
            assert float(found[i]) == pytest.approx(sum(expected) / len(parts), abs=1e-12)


@pytest.mark.parametrize(("kernel", "beta"), LIMITS)
def test_kernel_scores_tend_to_energy_scores_for_a_large_bandwidth(
    kernel: str, beta: float
) -> None:
    """RBF and IMQ tend to the diffusion loss, the exponential kernel to beta 1; in float32 too."""
    draws, target = draws_and_target(4, 3, 2, 3)
    limit = energy_score(draws, target, beta)
    gaps = [float((kernel_score(draws, target, kernel, h) - limit).abs().max()) for h in (1e2, 1e3)]
    assert gaps[1] < 0.02
    assert gaps[1] / gaps[0] == pytest.approx(10.0 ** (-beta), rel=0.05)
    single = kernel_score(draws.float(), target.float(), kernel, 1e6)
    torch.testing.assert_close(single.double(), limit, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("kernel", "beta"), LIMITS)
def test_for_a_large_bandwidth_the_gradient_is_that_of_the_limit(kernel: str, beta: float) -> None:
    """Of RBF and IMQ that of the squared error, of all views and at any lambda."""
    draws, target = draws_and_target(4, 3, 3, 2, 2)
    draws.requires_grad_()
    t = torch.full((4,), 0.5, dtype=torch.float64)
    for lam in (0.0, 0.7):
        kernels, energy = (
            config.make()(draws, target, t).score(lam).sum()
            for config in (KernelConfig(kernel=kernel, bandwidth=1e5), EnergyConfig(beta=beta))
        )
        (found,), (expected,) = (torch.autograd.grad(score, draws) for score in (kernels, energy))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
        if beta == 2 and lam == 0:
            by_hand = 2 * (draws - target[:, None]) / (3 * 12)  # of the mean square of 3 draws
            torch.testing.assert_close(found, by_hand, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("kernel", KERNELS)
def test_gradients_pass_finite_differences(kernel: str) -> None:
    draws, target = draws_and_target(2, 3, 2, 2)
    draws.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: kernel_score(x, target, kernel), draws)


@pytest.mark.parametrize("kernel", KERNELS)
def test_coincident_draws_have_a_finite_gradient(kernel: str) -> None:
    draws, target = draws_and_target(2, 4, 2, 2)
    draws[0] = target[0]
    draws.requires_grad_()
    score = kernel_score(draws, target, kernel)
    (gradient,) = torch.autograd.grad(score.sum(), draws)
    assert torch.isfinite(gradient).all()
    assert (gradient[0] == 0).all()
    assert (gradient[1] != 0).all()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kernel": "gauss"}, r"kernel .*rbf.*'gauss'"),
        ({"bandwidth": 0.0}, r"bandwidth .*0\.0"),
        ({"bandwidth": float("inf")}, "bandwidth .*inf"),
    ],
)
def test_numbers_that_make_no_kernel_are_refused(change: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        KernelConfig(**change)
    with pytest.raises(ValueError, match=said):
        kernel_score(torch.zeros(1, 2, 3), torch.zeros(1, 3), **change)
