"""The generator: its face, its sizes, its randomness, and that it is a diffusers model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from latentddm.networks.layers import Convolution
from latentddm.networks.unet import UNet

SMALL = {"latent_channels": 3, "channels": 16, "multipliers": (1, 2), "blocks": 1}


def small(**changes: object) -> UNet:
    torch.manual_seed(0)
    network = UNet(**{**SMALL, "attention_levels": (1,), "head_channels": 16, **changes})
    for parameter in network.parameters():  # no layer may stay at its zero start
        torch.nn.init.normal_(parameter, std=0.05)
    return network.eval()


def inputs(batch: int = 2, m: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x_t = torch.randn(batch, 3, 8, 8, generator=generator)
    xi = torch.randn(batch, m, 3, 8, 8, generator=generator)
    return x_t, torch.linspace(0.2, 0.8, batch), xi


def test_m_draws_at_once_are_the_m_draws_one_by_one() -> None:
    network, (x_t, t, xi) = small(), inputs()
    together = network(x_t, t, xi)
    assert together.shape == xi.shape
    for j in range(xi.shape[1]):
        torch.testing.assert_close(together[:, j], network(x_t, t, xi[:, j]), rtol=1e-5, atol=1e-5)


def test_every_input_matters() -> None:
    network, (x_t, t, xi) = small(), inputs()
    base = network(x_t, t, xi)
    for changed in ((x_t + 1, t, xi), (x_t, t * 0.5, xi), (x_t, t, -xi)):
        assert (network(*changed) - base).abs().max() > 1e-3


def test_a_new_network_already_listens_to_xi_and_gets_a_gradient_from_it() -> None:
    torch.manual_seed(0)
    network, (x_t, t, xi) = UNet(**SMALL), inputs()
    draws = network(x_t, t, xi)
    assert draws.var(dim=1).mean() > 1e-4
    draws.square().sum().backward()
    assert network.draw_parts[0].convolution.weight.grad[:, 3:].abs().max() > 0


def test_at_t_zero_the_v_prediction_gives_back_x_t() -> None:
    network, (x_t, _, xi) = small(prediction="v"), inputs()
    torch.testing.assert_close(network(x_t, torch.zeros(2), xi[:, 0]), x_t)


@pytest.mark.parametrize("prediction", ["x0", "eps", "v", "edm"])
def test_save_and_load_give_the_same_network(tmp_path: Path, prediction: str) -> None:
    network, (x_t, t, xi) = small(prediction=prediction, sigma_data=0.3), inputs()
    network.save_pretrained(tmp_path)
    assert (tmp_path / "diffusion_pytorch_model.safetensors").is_file()
    loaded = UNet.from_pretrained(tmp_path)
    assert loaded.config["prediction"] == prediction
    assert torch.equal(loaded(x_t, t, xi), network(x_t, t, xi))


@pytest.mark.parametrize(
    ("arguments", "least", "most"),
    [
        ({"channels": 32, "multipliers": (1, 2), "blocks": 1}, 0.2e6, 1e6),
        ({"channels": 256, "multipliers": (1, 2, 3), "blocks": 2}, 1e8, 4e8),
    ],
)
def test_sizes_from_under_one_to_over_a_hundred_million(
    arguments: dict[str, object], least: float, most: float
) -> None:
    with torch.device("meta"):
        assert least < UNet(latent_channels=4, **arguments).num_parameters() < most


def test_in_a_patch_of_all_latents_every_number_hears_every_other() -> None:
    alone = {"patch_size": 8, "multipliers": (1,), "pointwise_levels": (0,), "attention_levels": ()}
    network, (x_t, t, xi) = small(**alone), inputs()
    x_t.requires_grad_()
    draws = network(x_t, t, xi)
    assert draws.shape == xi.shape
    (heard,) = torch.autograd.grad(draws[:, 0, 0, 0, 0].sum(), x_t)
    assert heard.abs().min() > 0


@pytest.mark.parametrize("edge", [1, 3])
def test_a_pointwise_convolution_is_the_same_on_one_position_and_on_many(edge: int) -> None:
    torch.manual_seed(0)
    layer, x = Convolution(8, 6, pointwise=True), torch.randn(2, 8, edge, edge)
    expected = torch.einsum("oc,bchw->bohw", layer.weight[:, :, 0, 0], x)
    expected += layer.bias[:, None, None]
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ({"patch_size": 0}, "patch_size must be at least 1, not 0"),
        ({"sigma_data": 0.0}, "sigma_data must be above 0, not 0.0"),
    ],
)
def test_sizes_that_make_no_network_are_refused(argument: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        UNet(**SMALL, **argument)


def test_sizes_that_are_not_square_work() -> None:
    network, (_, t, _) = small(), inputs()
    x_t = torch.randn(2, 3, 8, 12)
    assert network(x_t, t, torch.randn_like(x_t)).shape == x_t.shape
