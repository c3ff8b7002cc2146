"""The average of draws against exact posterior means: its error, its pairs, its independence."""

from __future__ import annotations

import math

import pytest
import torch
from oracles import Mixture, PosteriorDenoiser
from torch import Tensor

from latentddm.diffusion.averaging import AveragedDenoiser
from latentddm.diffusion.guidance import GuidedDenoiser
from latentddm.diffusion.sampling import Denoiser, sample, time_grid

BATCH, DIMENSION = 2000, 2
VARIANCE = 0.6  # of the prior N(m, VARIANCE I)


def gaussian() -> Mixture:
    one = torch.ones(1, dtype=torch.float64)
    return Mixture(one, torch.tensor([[1.0, -2.0]], dtype=torch.float64), VARIANCE * one)


def draws_of(denoiser: Denoiser) -> Denoiser:
    """A denoiser of rows [B, D] as a network that takes xi [B, n, D] and returns n draws."""

    def network(x_t: Tensor, t: Tensor, xi: Tensor) -> Tensor:
        n = xi.shape[1]
        rows = denoiser(x_t.repeat_interleave(n, 0), t.repeat_interleave(n), xi.flatten(0, 1))
        return rows.unflatten(0, (len(x_t), n))

    return network


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def points(batch: int = BATCH) -> tuple[Tensor, Tensor]:
    """x_t [B, D] and t [B] in (0, 1)."""
    generator = seeded(1)
    x_t = torch.randn(batch, DIMENSION, generator=generator, dtype=torch.float64)
    return x_t, torch.rand(batch, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("n", [4, 16, 64])
def test_the_error_of_n_independent_draws_is_the_posteriors_deviation_over_root_n(n: int) -> None:
    own = seeded(2)

    def draw(x_t: Tensor, t: Tensor, xi: Tensor) -> Tensor:
        """Exact draws whose noise is not xi, so that nothing cancels within a pair."""
        noise = torch.randn(xi.shape, generator=own, dtype=torch.float64)
        return PosteriorDenoiser(gaussian(), 0)(x_t, t, noise)

    x_t, t = points()
    exact = gaussian().mean_denoiser(x_t, t, x_t)
    error = AveragedDenoiser(draws_of(draw), n, seeded(3))(x_t, t, x_t) - exact
    variance = gaussian().posterior(x_t, t)[2]  # [B, 1]
    standardised = error / (variance / n).sqrt()  # N(0, 1), if the error is as claimed
    values = standardised.numel()
    assert abs(float(standardised.mean())) < 4 / math.sqrt(values)
    assert abs(float(standardised.square().mean()) - 1) < 4 * math.sqrt(2 / values)


def test_two_draws_of_a_gaussian_posterior_average_to_its_mean_exactly() -> None:
    x_t, t = points()
    network = draws_of(PosteriorDenoiser(gaussian(), 0))  # mean + deviation xi: odd about the mean
    mean = AveragedDenoiser(network, 2)(x_t, t, x_t)
    torch.testing.assert_close(mean, gaussian().mean_denoiser(x_t, t, x_t), rtol=0, atol=1e-12)


def test_ddim_by_the_average_arrives_where_ddim_by_the_exact_mean_does() -> None:
    weights, one = torch.tensor([0.3, 0.7], dtype=torch.float64), torch.ones(2).double()
    # Of modes that overlap: between modes far apart a path's end jumps with its start.
    target, times = Mixture(weights, torch.stack([one, -one]), one / 2), time_grid(4)
    start = torch.randn(200, DIMENSION, generator=seeded(4), dtype=torch.float64)
    exact = sample(target.mean_denoiser, start, times)
    distance = {}
    for n in (16, 1024):
        averaged = AveragedDenoiser(draws_of(PosteriorDenoiser(target, 5)), n, seeded(6))
        away = sample(averaged, start, times) - exact
        distance[n] = float(away.square().sum(1).mean().sqrt())
    print(distance)
    assert distance[1024] < 0.1  # the modes are 2.8 apart
    assert 6 < distance[16] / distance[1024] < 10  # sqrt(1024 / 16) = 8


def test_a_sample_does_not_depend_on_the_batch_if_each_has_its_generator() -> None:
    x_t, t = points(5)
    network = draws_of(lambda x_t, t, xi: x_t + xi.square())  # even in xi: nothing cancels
    together = AveragedDenoiser(network, 4, [seeded(row) for row in range(5)])(x_t, t, x_t)
    alone = AveragedDenoiser(network, 4, [seeded(3)])(x_t[3:4], t[3:4], x_t[3:4])
    assert torch.equal(together[3:4], alone)


def test_xi_is_fresh_in_each_call_and_that_of_the_sampler_is_not_read() -> None:
    seen: list[Tensor] = []

    def network(x_t: Tensor, t: Tensor, xi: Tensor) -> Tensor:
        seen.append(xi)
        return xi.square()

    x_t = torch.zeros(2, 3, 4, 4)
    averaged = AveragedDenoiser(network, 6, seeded(0))
    for xi in (torch.zeros_like(x_t), torch.full_like(x_t, torch.nan)):
        assert averaged(x_t, torch.ones(2), xi).shape == x_t.shape
    first, second = seen
    assert first.shape == (2, 6, 3, 4, 4)
    assert torch.equal(first[:, :3], -first[:, 3:])
    assert not torch.equal(first, second)
    assert bool(first.isfinite().all() & second.isfinite().all())


def test_a_guided_network_is_averaged_like_another() -> None:
    def labelled(x_t: Tensor, t: Tensor, xi: Tensor, labels: Tensor) -> Tensor:
        return x_t[:, None] + xi + labels[:, None, None]

    x_t, t = points(3)
    guided = GuidedDenoiser(labelled, label=1, classes=2, guidance=3.0)
    mean = AveragedDenoiser(guided, 4)(x_t, t, x_t)
    torch.testing.assert_close(mean, x_t + 2 + 3.0 * (1 - 2))  # D(none) + g (D(1) - D(none))


@pytest.mark.parametrize("n", [0, 1, 5, -2])
def test_a_number_of_draws_that_makes_no_pairs_is_named(n: int) -> None:
    with pytest.raises(ValueError, match=f"draws.*{n}"):
        AveragedDenoiser(lambda x_t, t, xi: xi, n)
