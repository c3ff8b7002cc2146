"""The UNet: its sizes, its layers, its patches."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_networks import PATCHES, UNET, inputs, random_network

from latentddm.networks.blocks import Input, NoiseBranch
from latentddm.networks.layers import Convolution, Norm
from latentddm.networks.unet import UNet, UNetConfig


@pytest.mark.parametrize(
    ("config", "least", "most"),
    [
        (UNetConfig(channels=32, multipliers=(1, 2), blocks=1), 0.2e6, 1e6),
        (UNetConfig(channels=256, multipliers=(1, 2, 3), blocks=2), 1e8, 4e8),
    ],
)
def test_sizes_from_under_one_to_over_a_hundred_million(
    config: UNetConfig, least: float, most: float
) -> None:
    with torch.device("meta"):
        assert least < UNet(latent_channels=4, **vars(config)).num_parameters() < most


def test_the_places_where_draws_can_split_off_are_listed() -> None:
    assert UNET.expansions == ["input", "middle", "up0", "up1", "up2", "up3", "output"]
    with pytest.raises(ValueError, match="input, middle, up0, up1, up2, up3, output, not 'up4'"):
        replace(UNET, expansion="up4")


def test_the_later_the_draws_split_off_the_less_is_done_for_each() -> None:
    def parts(expansion: str) -> int:
        return len(random_network(UNET, expansion=expansion).draw_parts)

    counts = [parts(place) for place in UNET.expansions if place != "output"]
    assert counts == sorted(counts, reverse=True)
    assert len(set(counts)) == len(counts)


def test_in_a_patch_of_all_latents_every_number_depends_on_every_other() -> None:
    network = random_network(replace(PATCHES, patch_size=8, attention_levels=())).eval()
    x_t, t, xi = (torch.randn(2, 3, 8, 8), inputs()[1], torch.randn(2, 3, 3, 8, 8))
    x_t.requires_grad_()
    draws = network(x_t, t, xi)
    assert draws.shape == xi.shape
    (read,) = torch.autograd.grad(draws[:, 0, 0, 0, 0].sum(), x_t)
    assert read.abs().min() > 0


def test_the_first_convolution_starts_as_one_of_x_t_and_xi_side_by_side() -> None:
    """The paper's form: in scale its two parts are one convolution of twice the channels."""
    torch.manual_seed(0)
    joint = torch.nn.Conv2d(8, 256, 3, padding=1)
    first = Input(4, 256, noise_channels=4, patch=1, pointwise=False, keep=None)
    assert first.noise is not None
    pairs = [
        (first.convolution.weight, joint.weight),
        (first.noise.weight, joint.weight),
        (first.convolution.bias, joint.bias),
    ]
    for found, expected in pairs:
        assert found is not None
        assert expected is not None
        scale = float(expected.detach().std())
        assert float(found.detach().std()) == pytest.approx(scale, rel=0.1)


@pytest.mark.parametrize("expansion", ["input", "up1", "output"])
def test_global_noise_reaches_all_positions_and_xi_of_zero_is_none(expansion: str) -> None:
    """One number of xi changes every position through the time, at once and far away."""
    config = replace(
        UNET, multipliers=(1,), attention_levels=(), global_noise=True, expansion=expansion
    )
    network = random_network(config).eval()
    x_t, t, xi = inputs()
    torch.testing.assert_close(network(x_t, t, 0 * xi), network(x_t, t)[:, None].expand_as(xi))
    with torch.no_grad():
        for layer in (m for part in network.draw_parts for m in part.modules()):
            if isinstance(layer, NoiseBranch):
                layer.convolution.weight.zero_()
            if isinstance(layer, Input) and layer.noise is not None:
                layer.noise.weight.zero_()
        changed = xi.clone()
        changed[0, 1, 0, 0, 0] += 3
        apart = (network(x_t, t, changed) - network(x_t, t, xi)).abs()
    assert apart[0, 1].amin(0).min() > 0
    apart[0, 1] = 0
    assert apart.max() == 0
    names = {id(parameter) for parameter in network.draw_parameters()}
    assert all(id(parameter) in names for parameter in network.global_noise.parameters())


@pytest.mark.parametrize("edge", [1, 3])
def test_a_pointwise_convolution_is_the_same_on_one_position_and_on_many(edge: int) -> None:
    torch.manual_seed(0)
    layer, x = Convolution(8, 6, pointwise=True), torch.randn(2, 8, edge, edge)
    expected = torch.einsum("oc,bchw->bohw", layer.weight[:, :, 0, 0], x)
    expected += layer.bias[:, None, None]
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-6)


def test_statistics_of_norms_are_taken_in_float32() -> None:
    torch.manual_seed(0)
    x = (torch.randn(2, 16, 64, 64) + 8).bfloat16()  # bfloat16 sums would stick at 2048 or so
    exact = Norm(16)(x.float())
    assert Norm(16)(x).dtype == torch.bfloat16
    torch.testing.assert_close(Norm(16)(x).float(), exact, rtol=1e-2, atol=2e-2)
