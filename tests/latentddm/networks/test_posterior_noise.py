"""The posterior noise of Gaussian latents, against dense matrices in float64."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_networks import DIT, UNET, inputs
from torch import Tensor

from latentddm.diffusion.schedules import SCHEDULES, make_schedule
from latentddm.networks.dit import DiT, DiTConfig
from latentddm.networks.network import make_network
from latentddm.networks.posterior_noise import PosteriorNoise
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


def maps(noise: PosteriorNoise, t: Tensor, schedule: str) -> tuple[Tensor, Tensor]:
    """The linear maps of xi at t that the layers read and that is added to x_0, [D, D]."""
    basis = torch.eye(DIMENSION).double().unflatten(1, SIZE)
    embedding = torch.ones(1, WIDTH).double()
    read, added = noise(basis[None], t[None], embedding, make_schedule(schedule))
    return read[0].flatten(1), added[0].flatten(1)


@pytest.mark.parametrize("schedule", list(SCHEDULES))
@pytest.mark.parametrize("time", [0.02, 0.4, 0.75, 1.0])
def test_the_covariance_is_that_of_the_gaussian_posterior(schedule: str, time: float) -> None:
    latents, t = correlated(), torch.tensor(time, dtype=torch.float64)
    noise = PosteriorNoise(SIZE, DIMENSION, WIDTH).double()
    noise.fit(*principal_axes(latents))
    read, added = maps(noise, t, schedule)
    expected = posterior(torch.cov(latents.flatten(1).T), t, schedule)
    torch.testing.assert_close(added.T @ added, expected, rtol=1e-6, atol=1e-6)
    expected = expected / expected.diag().mean()
    torch.testing.assert_close(read.T @ read, expected, rtol=1e-6, atol=1e-6)


def test_axes_that_are_left_out_share_their_variance() -> None:
    latents, t = correlated(), torch.tensor(0.6, dtype=torch.float64)
    axes, variances = principal_axes(latents)
    noise = PosteriorNoise(SIZE, 5, WIDTH).double()
    noise.fit(axes, variances)
    _, added = maps(noise, t, "flow")
    shared = torch.cat([variances[:5], variances[5:].mean().expand(13)])
    torch.testing.assert_close(added.T @ added, posterior((axes * shared) @ axes.T, t, "flow"))


def test_fewer_latents_than_numbers_leave_the_other_axes_without_variance() -> None:
    noise = PosteriorNoise(SIZE, DIMENSION, WIDTH).double()
    noise.fit(*principal_axes(correlated(7)))
    variances = noise.posterior_variances(torch.tensor([0.5]).double(), make_schedule("flow"))[0]
    assert (variances[:6] > 0).all()
    assert (variances[6:] == 0).all()


def test_noise_is_white_before_it_is_fitted_and_near_data() -> None:
    noise, white = PosteriorNoise(SIZE, 5, WIDTH).double(), torch.eye(DIMENSION).double()
    t = torch.tensor(1e-4).double()
    torch.testing.assert_close(maps(noise, t, "flow")[0], white)
    noise.fit(*principal_axes(correlated()))
    torch.testing.assert_close(maps(noise, t, "flow")[0], white, rtol=0, atol=1e-4)


@pytest.mark.parametrize("config", [UNET, DIT], ids=["unet", "dit"])
def test_the_first_draws_are_the_mean_and_the_posterior_noise(
    config: UNetConfig | DiTConfig, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    x_t, t, xi = inputs()
    network = make_network(
        replace(config, noise="posterior", noise_components=4), x_t.shape[1:]
    ).eval()
    noise = network.posterior_noise
    assert noise is not None
    noise.fit(*principal_axes(torch.randn(64, *x_t.shape[1:]).cumsum(3)))
    _, added = noise(xi, t, network.time_embedding(t), network.schedule)
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
    network = make_network(replace(DIT, noise="posterior"), (3, 8, 12))
    network.check_latents((3, 8, 12))
    with pytest.raises(ValueError, match=r"noise is 'posterior', of latents of 8 x 12"):
        network.check_latents((3, 8, 8))
    with pytest.raises(ValueError, match="noise is 'posterior', which needs the size"):
        DiT(latent_channels=3, **vars(replace(DIT, noise="posterior")))
