"""xi with the posterior covariance of Gaussian latents, against dense matrices in float64."""

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
DIMENSION = 18


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


def matrix(noise: PosteriorNoise, t: Tensor, schedule: str) -> Tensor:
    """The linear map of xi at t, [D, D]."""
    basis = torch.eye(DIMENSION).double().unflatten(1, SIZE)
    return noise(basis[None], t[None], make_schedule(schedule))[0].flatten(1)


@pytest.mark.parametrize("schedule", list(SCHEDULES))
@pytest.mark.parametrize("time", [0.02, 0.4, 0.75, 1.0])
def test_the_covariance_is_that_of_the_gaussian_posterior(schedule: str, time: float) -> None:
    latents, t = correlated(), torch.tensor(time, dtype=torch.float64)
    noise = PosteriorNoise(SIZE, DIMENSION).double()
    noise.fit(*principal_axes(latents))
    found = matrix(noise, t, schedule)
    expected = posterior(torch.cov(latents.flatten(1).T), t, schedule)
    expected = expected / expected.diag().mean()
    torch.testing.assert_close(found.T @ found, expected, rtol=1e-6, atol=1e-6)


def test_axes_that_are_left_out_share_their_variance() -> None:
    latents, t = correlated(), torch.tensor(0.6, dtype=torch.float64)
    axes, variances = principal_axes(latents)
    noise = PosteriorNoise(SIZE, 5).double()
    noise.fit(axes, variances)
    found = matrix(noise, t, "flow")
    shared = torch.cat([variances[:5], variances[5:].mean().expand(13)])
    expected = posterior((axes * shared) @ axes.T, t, "flow")
    torch.testing.assert_close(found.T @ found, expected / expected.diag().mean())


def test_fewer_latents_than_numbers_leave_the_other_axes_without_variance() -> None:
    noise = PosteriorNoise(SIZE, DIMENSION).double()
    noise.fit(*principal_axes(correlated(7)))
    gains = noise.gains(torch.tensor([0.5]).double(), make_schedule("flow"))[0]
    assert (gains[:6] > 0).all()
    assert (gains[6:] == 0).all()


def test_noise_is_white_before_it_is_fitted_and_near_data() -> None:
    noise = PosteriorNoise(SIZE, 5).double()
    t = torch.tensor(1e-4).double()
    torch.testing.assert_close(matrix(noise, t, "flow"), torch.eye(DIMENSION).double())
    noise.fit(*principal_axes(correlated()))
    found = matrix(noise, t, "flow")
    torch.testing.assert_close(found, torch.eye(DIMENSION).double(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("config", [UNET, DIT], ids=["unet", "dit"])
def test_a_network_reads_coloured_noise_and_saves_its_axes(
    config: UNetConfig | DiTConfig, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    x_t, t, xi = inputs()
    shape = x_t.shape[1:]
    white = make_network(config, shape).eval()
    coloured = make_network(replace(config, noise="posterior", noise_components=4), shape).eval()
    coloured.load_state_dict({**coloured.state_dict(), **white.state_dict()})
    for parameter in [*white.parameters(), *coloured.parameters()]:
        torch.manual_seed(parameter.numel())
        torch.nn.init.normal_(parameter, std=0.15)
    assert torch.equal(coloured(x_t, t, xi), white(x_t, t, xi))  # not fitted yet
    assert coloured.posterior_noise is not None
    coloured.posterior_noise.fit(*principal_axes(torch.randn(64, *shape).cumsum(3)))
    drawn = coloured(x_t, t, xi)
    own = coloured.posterior_noise(xi, t, coloured.schedule)
    torch.testing.assert_close(drawn, white(x_t, t, own))
    torch.testing.assert_close(drawn[:, 1], coloured(x_t, t, xi[:, 1]))
    assert torch.equal(coloured(x_t, t), white(x_t, t))  # the mean has no xi
    coloured.save_pretrained(tmp_path)
    assert torch.equal(type(coloured).from_pretrained(tmp_path).eval()(x_t, t, xi), drawn)


def test_latents_of_another_size_are_refused() -> None:
    network = make_network(replace(DIT, noise="posterior"), (3, 8, 12))
    network.check_latents((3, 8, 12))
    with pytest.raises(ValueError, match=r"noise is 'posterior', of latents of 8 x 12"):
        network.check_latents((3, 8, 8))
    with pytest.raises(ValueError, match="noise is 'posterior', which needs the height"):
        DiT(latent_channels=3, **vars(replace(DIT, noise="posterior")))
