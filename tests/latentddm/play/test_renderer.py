"""The views of a run, without gradio: which pictures they hold, and from which noise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autoencoder.decode import decode_latents
from latentddm.diffusion.sampling import sample
from latentddm.engine.errors import UserError
from latentddm.engine.seeding import torch_generator
from latentddm.inference.generator import SamplingConfig
from latentddm.play.renderer import Renderer
from latentddm.play.sheet import Row, Sheet


class LinearNetwork(nn.Module):
    """Draws x_t / 2 + xi_weight xi: their mean is x_t / 2; with weight 0, a mean denoiser."""

    device = torch.device("cpu")

    def __init__(self, config: dict[str, object], xi_weight: float) -> None:
        super().__init__()
        self.config, self.xi_weight = config, xi_weight

    def forward(
        self, x_t: Tensor, t: Tensor, xi: Tensor | None, labels: Tensor | None = None
    ) -> Tensor:
        mean = x_t / 2
        if xi is None:
            return mean
        return (mean[:, None] if xi.ndim > x_t.ndim else mean) + self.xi_weight * xi


def linear(renderer: Renderer, xi_weight: float, reads_xi: bool = True) -> Renderer:
    """The renderer with a linear network in the place of the trained one."""
    network = LinearNetwork(renderer.generator.network.config, xi_weight)
    generator = replace(renderer.generator, network=network, reads_xi=reads_xi)
    return Renderer("linear", generator, renderer.autoencoder)


def row(sheet: Sheet, name: str) -> Row:
    return next(row for row in sheet.rows if row.name == name)


def pixels(renderer: Renderer, raw: Tensor) -> np.ndarray:
    return decode_latents(raw, renderer.autoencoder).numpy()


def test_the_ddm_row_holds_the_samples_of_the_sample_command(renderer: Renderer) -> None:
    config = SamplingConfig(steps=2, seed=3)
    expected = pixels(renderer, renderer.generator.draw(3, config))
    sheet = renderer.draws(config, count=3)
    assert np.array_equal(row(sheet, "ddm").pixels, expected)
    wanted = {"run": "ddm", "images_seen": 16, "seed": 3, "steps": 2}
    assert wanted.items() <= sheet.settings.items()


@pytest.mark.parametrize("churn", [0.0, 0.5])
def test_the_mean_row_is_the_mean_denoisers_from_the_same_noise(
    renderer: Renderer, churn: float
) -> None:
    linear_renderer = linear(renderer, xi_weight=3.0)
    generator = linear_renderer.generator
    config = SamplingConfig(steps=3, seed=5, churn=churn)
    means = []
    for index in range(2):
        own = torch_generator(config.seed, "sample", index)
        noise = torch.randn((1, *generator.space.shape), generator=own)
        times = generator.times(config)
        means.append(sample(lambda x_t, t, xi: x_t / 2, noise, times, churn, generator=[own]))
    sheet = linear_renderer.draws(config, count=2)
    expected = pixels(renderer, generator.space.restore(torch.cat(means)))
    found = row(sheet, "mean").pixels
    assert np.abs(found.astype(int) - expected).max() <= 1  # rounding within an average of 16
    assert np.abs(row(sheet, "ddm").pixels.astype(int) - expected).max() > 16


def test_the_mean_differs_from_the_draws_and_is_the_same_for_the_same_seed(
    renderer: Renderer,
) -> None:
    config = SamplingConfig(steps=2, seed=1)
    first, again = renderer.draws(config, 2), renderer.draws(config, 2)
    assert [row.name for row in first.rows] == ["ddm", "mean"]
    assert not np.array_equal(row(first, "ddm").pixels, row(first, "mean").pixels)
    assert first.archive() == again.archive()
    fewer = renderer.draws(config, 1)
    difference = row(fewer, "mean").pixels[0].astype(int) - row(first, "mean").pixels[0]
    assert np.abs(difference).max() <= 1  # batches of one and of two may be decoded apart


def test_a_smaller_scale_of_xi_brings_the_draws_to_their_mean_and_leaves_the_mean_row(
    renderer: Renderer,
) -> None:
    linear_renderer = linear(renderer, xi_weight=3.0)
    exact, none = (
        linear_renderer.draws(SamplingConfig(steps=2, xi_scale=scale), count=2)
        for scale in (1.0, 0.0)
    )
    assert np.array_equal(row(exact, "mean").pixels, row(none, "mean").pixels)
    assert not np.array_equal(row(exact, "ddm").pixels, row(none, "ddm").pixels)
    difference = row(none, "ddm").pixels.astype(int) - row(none, "mean").pixels
    assert np.abs(difference).max() <= 1
    posterior = linear_renderer.posterior(0.9, count=2, xi_scale=0.0)
    mean = row(posterior, "given").pixels[2].astype(int)
    assert all(np.abs(draw - mean).max() <= 1 for draw in row(posterior, "draw").pixels)


def test_a_smaller_scale_of_the_initial_noise_reaches_every_row(renderer: Renderer) -> None:
    config = SamplingConfig(steps=2, noise_scale=0.5)
    plain = linear(renderer, xi_weight=3.0, reads_xi=False)
    drawn = pixels(plain, plain.generator.draw(1, config))
    for found in (plain.draws(config, 1).rows[0], plain.trajectory(config).rows[1]):
        difference = found.pixels[-1].astype(int) - drawn[0]
        assert np.abs(difference).max() <= 1  # decoded in batches of other sizes
    mean = row(linear(renderer, xi_weight=3.0).draws(config, 1), "mean").pixels.astype(int)
    assert np.abs(mean - drawn).max() <= 1
    assert (
        np.abs(drawn.astype(int) - plain.draws(SamplingConfig(steps=2), 1).rows[0].pixels).max() > 4
    )


def test_plain_diffusion_has_one_row_since_it_is_its_own_mean(renderer: Renderer) -> None:
    plain = linear(renderer, xi_weight=3.0, reads_xi=False)
    assert renderer.reads_xi
    assert not plain.reads_xi
    config = SamplingConfig(steps=2)
    (only,) = plain.draws(config, count=2).rows
    with pytest.raises(UserError, match="this run is plain diffusion"):
        plain.draws(replace(config, xi_scale=0.5))
    assert np.array_equal(only.pixels, pixels(plain, plain.generator.draw(2, config)))
    drawn = row(plain.posterior(0.9, 3), "draw")
    assert np.array_equal(drawn.pixels[0], drawn.pixels[1])
    assert only.explanation == drawn.explanation


def test_a_trajectory_starts_at_noise_and_ends_in_picture_0(renderer: Renderer) -> None:
    config = SamplingConfig(steps=3, churn=0.5, seed=1)
    sheet = renderer.trajectory(config)
    noisy, drawn = row(sheet, "x_t"), row(sheet, "x_0")
    assert noisy.captions == drawn.captions == ("t = 1.000", "t = 0.667", "t = 0.333")
    noise = torch.randn(
        (1, *renderer.generator.space.shape), generator=torch_generator(1, "sample", 0)
    )
    start = pixels(renderer, renderer.generator.space.restore(noise))[0]
    end = row(renderer.draws(config, count=1), "ddm").pixels[0]
    # Batches of one and of three may be decoded apart, by a rounding.
    assert np.abs(noisy.pixels[0].astype(int) - start).max() <= 1
    assert np.abs(drawn.pixels[-1].astype(int) - end).max() <= 1
    assert not np.array_equal(drawn.pixels[0], drawn.pixels[-1])


def test_in_a_trajectory_too_the_last_scale_of_xi_goes_on(renderer: Renderer) -> None:
    config = SamplingConfig(steps=3, seed=1, xi_scale=(1.0, 0.5))
    end = row(renderer.draws(config, count=1), "ddm").pixels[0]
    drawn = row(renderer.trajectory(config), "x_0").pixels[-1]
    assert np.abs(drawn.astype(int) - end).max() <= 1


def test_posterior_draws_differ_and_are_the_same_for_the_same_seed(renderer: Renderer) -> None:
    sheet = renderer.posterior(0.9, count=4, seed=2)
    drawn = row(sheet, "draw").pixels
    assert len({picture.tobytes() for picture in drawn}) == 4
    assert sheet.archive() == renderer.posterior(0.9, count=4, seed=2).archive()
    given, other_time = row(sheet, "given"), row(renderer.posterior(0.2, 4, 2), "given")
    assert np.array_equal(given.pixels[0], other_time.pixels[0])  # the sample before the noise
    assert not np.array_equal(given.pixels[1], other_time.pixels[1])
    assert row(sheet, "given").captions[1] == "xₜ at t = 0.90"


def test_wrong_settings_name_the_setting_and_the_remedy(renderer: Renderer) -> None:
    with pytest.raises(UserError, match=r"ddim.*unipc"):
        renderer.trajectory(SamplingConfig(solver="unipc"))
    with pytest.raises(UserError, match=r"\bt\b.*0\.0"):
        renderer.posterior(0.0)
    with pytest.raises(UserError, match=r"churn.*unipc"):
        renderer.draws(SamplingConfig(solver="unipc", churn=0.5))
    with pytest.raises(UserError, match="label"):
        renderer.draws(SamplingConfig(label=0))
