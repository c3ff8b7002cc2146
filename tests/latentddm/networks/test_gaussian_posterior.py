"""The posterior of Gaussian latents, against dense matrices in float64."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_networks import DIT, UNET, inputs, random_network
from torch import Tensor

from latentddm.diffusion.schedules import SCHEDULES, make_schedule
from latentddm.networks.dit import DiT, DiTConfig
from latentddm.networks.gaussian_posterior import GaussianLatents, PosteriorNoise
from latentddm.networks.network import make_network
from latentddm.networks.unet import UNetConfig
from latentddm.scores.views.components import principal_axes

SIZE = (2, 3, 3)
DIMENSION, WIDTH = 18, 8


def correlated(count: int = 400) -> Tensor:
    """Latents [count, 2, 3, 3] whose numbers vary together, float64."""
    random = torch.Generator().manual_seed(0)
    mix = torch.randn(DIMENSION, DIMENSION, generator=random, dtype=torch.float64)
    white = torch.randn(count, DIMENSION, generator=random, dtype=torch.float64)
    return (white @ (mix / torch.arange(1, DIMENSION + 1).sqrt())).unflatten(1, SIZE)


def posterior(covariance: Tensor, t: Tensor, schedule: str) -> Tensor:
    """Cov(x_0 | x_t) of Gaussian latents, by a dense inverse."""
    process = make_schedule(schedule)
    alpha, sigma = process.alpha(t), process.sigma(t)
    noisy = alpha**2 * covariance + sigma**2 * torch.eye(len(covariance)).double()
    return covariance - alpha**2 * covariance @ noisy.inverse() @ covariance


def fitted(latents: Tensor, components: int = DIMENSION) -> GaussianLatents:
    gaussian = GaussianLatents(SIZE, components).double()
    gaussian.fit(latents.mean(0), *principal_axes(latents))
    return gaussian


def maps(gaussian: GaussianLatents, t: Tensor, schedule: str) -> tuple[Tensor, Tensor]:
    """The linear maps of xi at t that the layers read and that is added to x_0, [D, D]."""
    noise = PosteriorNoise(gaussian.axes.shape[1], WIDTH).double()
    basis = torch.eye(DIMENSION).double().unflatten(1, SIZE)
    embedding = torch.ones(1, WIDTH).double()
    read, added = noise(basis[None], t[None], embedding, gaussian, make_schedule(schedule))
    return read[0].flatten(1), added[0].flatten(1)


@pytest.mark.parametrize("schedule", list(SCHEDULES))
@pytest.mark.parametrize("time", [0.02, 0.4, 0.75, 1.0])
def test_the_covariance_is_that_of_the_gaussian_posterior(schedule: str, time: float) -> None:
    latents, t = correlated(), torch.tensor(time, dtype=torch.float64)
    read, added = maps(fitted(latents), t, schedule)
    expected = posterior(torch.cov(latents.flatten(1).T), t, schedule)
    torch.testing.assert_close(added.T @ added, expected, rtol=1e-6, atol=1e-6)
    expected = expected / expected.diag().mean()
    torch.testing.assert_close(read.T @ read, expected, rtol=1e-6, atol=1e-6)


def test_axes_that_are_left_out_share_their_variance() -> None:
    latents, t = correlated(), torch.tensor(0.6, dtype=torch.float64)
    axes, variances = principal_axes(latents)
    _, added = maps(fitted(latents, 5), t, "flow")
    shared = torch.cat([variances[:5], variances[5:].mean().expand(13)])
    torch.testing.assert_close(added.T @ added, posterior((axes * shared) @ axes.T, t, "flow"))


def test_fewer_latents_than_numbers_leave_the_other_axes_without_variance() -> None:
    few, t = fitted(correlated(7)), torch.tensor([0.5]).double()
    variances = few.posterior_variances(t, make_schedule("flow"))[0]
    assert (variances[:6] > 0).all()
    assert (variances[6:] == 0).all()
    x, zero = correlated(2), torch.zeros(2).double()  # at data too, where all noise is gone
    mean = few.posterior_mean(x, zero, make_schedule("flow"))
    assert mean.isfinite().all()
    assert (few.posterior_variances(zero, make_schedule("flow")) == 0).all()


def test_noise_is_white_before_it_is_fitted_and_near_data() -> None:
    white, t = torch.eye(DIMENSION).double(), torch.tensor(1e-4).double()
    torch.testing.assert_close(maps(GaussianLatents(SIZE, 5).double(), t, "flow")[0], white)
    torch.testing.assert_close(
        maps(fitted(correlated(), 5), t, "flow")[0], white, rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("schedule", list(SCHEDULES))
@pytest.mark.parametrize("time", [0.02, 0.4, 0.75, 1.0])
def test_the_mean_is_that_of_the_gaussian_posterior(schedule: str, time: float) -> None:
    """mu + alpha C (alpha^2 C + sigma^2)^-1 (x_t - alpha mu), by a dense inverse."""
    latents, t = correlated() + 3, torch.tensor([time], dtype=torch.float64)
    process, mean = make_schedule(schedule), latents.mean(0)
    alpha, sigma = process.alpha(t), process.sigma(t)
    covariance = torch.cov(latents.flatten(1).T)
    noisy = alpha**2 * covariance + sigma**2 * torch.eye(DIMENSION).double()
    x_t = latents[:4] * alpha + sigma * correlated(4)
    shift = (x_t - alpha * mean).flatten(1) @ (alpha * covariance @ noisy.inverse()).T
    found = fitted(latents).posterior_mean(x_t, t.expand(4), process)
    torch.testing.assert_close(found, mean + shift.unflatten(1, SIZE), rtol=1e-6, atol=1e-6)


def test_no_latent_is_nearer_to_the_data_than_the_mean_at_pure_noise() -> None:
    latents = correlated() + 3
    found = fitted(latents, 2).posterior_mean(correlated(4), torch.ones(4), make_schedule("flow"))
    torch.testing.assert_close(found, latents.mean(0).expand(4, *SIZE))


@pytest.mark.parametrize("config", [UNET, DIT], ids=["unet", "dit"])
def test_the_layers_read_the_mean_beside_x_t(config: UNetConfig | DiTConfig) -> None:
    """A change of the statistics alone changes the result, though nothing is added to it."""
    network = random_network(replace(config, gaussian_mean=True, gaussian_components=4)).eval()
    x_t, t, xi = inputs()
    gaussian = network.gaussian_latents
    assert gaussian is not None
    before = network(x_t, t, xi)
    torch.testing.assert_close(before[:, 1], network(x_t, t, xi[:, 1]))
    latents = torch.randn(64, *x_t.shape[1:]).cumsum(3)
    gaussian.fit(latents.mean(0), *principal_axes(latents))
    assert not torch.allclose(network(x_t, t, xi), before)
    plain = random_network(config)
    extra = sum(p.numel() for p in network.parameters()) - sum(
        p.numel() for p in plain.parameters()
    )
    assert 0 < extra < sum(p.numel() for p in plain.parameters()) / 5


@pytest.mark.parametrize("config", [UNET, DIT], ids=["unet", "dit"])
def test_the_first_draws_are_the_mean_and_the_posterior_noise(
    config: UNetConfig | DiTConfig, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    x_t, t, xi = inputs()
    network = make_network(
        replace(config, noise="posterior", gaussian_components=4), x_t.shape[1:]
    ).eval()
    noise, gaussian = network.posterior_noise, network.gaussian_latents
    assert noise is not None
    assert gaussian is not None
    latents = torch.randn(64, *x_t.shape[1:]).cumsum(3)
    gaussian.fit(latents.mean(0), *principal_axes(latents))
    _, added = noise(xi, t, network.time_embedding(t), gaussian, network.schedule)
    drawn = network(x_t, t, xi)
    torch.testing.assert_close(drawn, network(x_t, t)[:, None] + added)
    torch.testing.assert_close(drawn[:, 1], network(x_t, t, xi[:, 1]))
    of_xi = network.draw_parameters()
    assert {id(parameter) for parameter in noise.parameters()} <= {id(p) for p in of_xi}
    drawn.square().sum().backward()
    layers = [p for p in of_xi if p.ndim > 1 and p.grad is not None and p.grad.abs().sum() > 0]
    assert len(layers) > 1, "xi has no way into the layers"
    network.save_pretrained(tmp_path)
    assert torch.equal(type(network).from_pretrained(tmp_path).eval()(x_t, t, xi), drawn)


def test_latents_of_another_size_are_refused() -> None:
    for config in (replace(DIT, noise="posterior"), replace(DIT, gaussian_mean=True)):
        network = make_network(config, (3, 8, 12))
        network.check_latents((3, 8, 12))
        with pytest.raises(ValueError, match=r"posterior and gaussian_mean are .* of 8 x 12"):
            network.check_latents((3, 8, 8))
        with pytest.raises(ValueError, match="posterior and gaussian_mean need the size"):
            DiT(latent_channels=3, **vars(config))
