"""Where the particles split off: every place draws the same way, trains whole, and shares."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from latentddm.networks.blocks import NoiseBranch
from latentddm.networks.layers import place_rows
from latentddm.networks.unet import UNet

PLACES = ["input", "middle", "up0", "up1", "up3", "output"]
SIZES: dict[str, object] = {
    "latent_channels": 3,
    "channels": 16,
    "multipliers": (1, 2),
    "blocks": 1,
    "attention_levels": (1,),
    "head_channels": 16,
}


PATCHES: dict[str, object] = {
    "patch_size": 4,
    "multipliers": (1,),
    "pointwise_levels": (0,),
    "attention_levels": (0,),
}


def network(**changes: object) -> UNet:
    torch.manual_seed(0)
    made = UNet(**{**SIZES, **changes})
    for parameter in made.parameters():  # no layer may stay at its zero start
        torch.nn.init.normal_(parameter, std=0.15)
    return made


def inputs(batch: int = 2, m: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x_t = torch.randn(batch, 3, 8, 12, generator=generator)
    xi = torch.randn(batch, m, 3, 8, 12, generator=generator)
    return x_t, torch.linspace(0.2, 0.8, batch), xi


def gradients(made: UNet, seed: int = 0) -> list[Tensor]:
    """Of a loss that couples the particles, dropout drawn from `seed`."""
    made.zero_grad()
    x_t, t, xi = inputs()
    torch.manual_seed(seed)
    draws = made(x_t, t, xi)
    loss = draws.square().mean() - (draws[:, 0] - draws[:, 1]).square().sum().sqrt() / 10
    loss.backward()
    return [p.grad.clone() for p in made.parameters() if p.grad is not None]


def assert_same_gradients(first: list[Tensor], second: list[Tensor]) -> None:
    assert len(first) == len(second)
    one, other = (torch.cat([part.flatten() for part in parts]) for parts in (first, second))
    assert (one - other).norm() <= 1e-6 * one.norm()


@pytest.mark.parametrize("place", PLACES)
def test_a_particle_does_not_depend_on_the_others(place: str) -> None:
    made, (x_t, t, xi) = network(expansion=place).eval(), inputs()
    together = made(x_t, t, xi)
    assert together.shape == xi.shape
    for j in range(xi.shape[1]):
        torch.testing.assert_close(together[:, j], made(x_t, t, xi[:, j]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("up_blocks", [None, 2, 3])
def test_every_parameter_gets_a_gradient_at_every_place(place: str, up_blocks: int | None) -> None:
    made = network(expansion=place, up_blocks=up_blocks)
    found = gradients(made)
    assert len(found) == len(list(made.parameters()))
    assert all(gradient.abs().max() > 0 for gradient in found)


@pytest.mark.parametrize("place", ["input", "middle", "up1", "output"])
def test_on_patches_a_particle_is_alone_and_every_parameter_gets_a_gradient(place: str) -> None:
    made, (x_t, t, xi) = network(expansion=place, **PATCHES), inputs()
    found = gradients(made)
    assert len(found) == len(list(made.parameters()))
    assert all(gradient.abs().max() > 0 for gradient in found)
    together = made.eval()(x_t, t, xi)
    for j in range(xi.shape[1]):
        torch.testing.assert_close(together[:, j], made(x_t, t, xi[:, j]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("place", PLACES)
def test_a_new_network_draws_different_samples_everywhere_in_the_picture(place: str) -> None:
    torch.manual_seed(0)
    made, (x_t, t, xi) = UNet(**{**SIZES, "expansion": place}), inputs()
    assert made(x_t, t, xi).var(dim=1).mean((0, 1)).min() > 1e-4


@pytest.mark.parametrize("place", ["input", "middle", "up0", "output"])
def test_xi_of_one_corner_reaches_the_other(place: str) -> None:
    made, (x_t, t, xi) = network(expansion=place).eval(), inputs()
    changed = xi.clone()
    changed[..., :2, :2] += 3
    difference = (made(x_t, t, changed) - made(x_t, t, xi)).abs()
    assert difference[..., -2:, -2:].mean() > 1e-5


def test_each_number_of_a_patch_of_xi_can_be_shut_out_alone() -> None:
    entrance, embedding = NoiseBranch(3, width=8, stride=2, embedding=4), torch.zeros(1, 4)
    with torch.no_grad():
        entrance.gate.bias.zero_()
        entrance.gate.bias[5] = 1  # numbers 4 ... 7 are the patch's of channel 1
    xi = torch.randn(1, 3, 2, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    residual, _ = entrance(xi, embedding)
    (heard,) = torch.autograd.grad(residual.square().sum(), xi)
    assert heard.nonzero().tolist() == [[0, 1, 0, 1]]


@pytest.mark.parametrize("place", PLACES)
def test_save_and_load_keep_the_place(tmp_path: Path, place: str) -> None:
    made, (x_t, t, xi) = network(expansion=place, dropout=0.1).eval(), inputs()
    made.save_pretrained(tmp_path)
    loaded = UNet.from_pretrained(tmp_path)
    assert torch.equal(loaded(x_t, t, xi), made(x_t, t, xi))


@pytest.mark.parametrize("place", PLACES)
def test_the_two_pass_gradient_is_the_gradient(place: str) -> None:
    made = network(expansion=place)
    expected = gradients(made)
    made.one_draw_at_a_time = True
    assert_same_gradients(gradients(made), expected)


@pytest.mark.parametrize("place", ["input", "output"])
def test_the_two_pass_gradient_is_the_gradient_with_dropout_too(place: str) -> None:
    made = network(expansion=place, dropout=0.3)
    expected = gradients(made)
    other = gradients(made, seed=1)
    assert (other[0] - expected[0]).norm() > 1e-3 * expected[0].norm()  # dropout was at work
    made.one_draw_at_a_time = True
    assert_same_gradients(gradients(made), expected)


@pytest.mark.parametrize("place", PLACES)
def test_checkpointing_changes_no_gradient(place: str) -> None:
    made = network(expansion=place, dropout=0.2)
    expected = gradients(made)
    made.enable_gradient_checkpointing()
    assert_same_gradients(gradients(made), expected)


@pytest.mark.parametrize("place", ["input", "middle", "output"])
def test_dropout_is_shared_by_the_particles_and_not_by_the_images(place: str) -> None:
    made, (x_t, t, xi) = network(expansion=place, dropout=0.5).train(), inputs()
    same = xi[:, :1].expand_as(xi)
    draws = made(x_t[:1].expand_as(x_t), t[:1].expand_as(t), same[:1].expand_as(xi))
    torch.testing.assert_close(draws[:, 0], draws[:, 2], rtol=1e-5, atol=1e-6)
    assert (draws[0] - draws[1]).abs().max() > 1e-3


@pytest.mark.parametrize("place", ["input", "output"])
def test_parts_of_a_batch_see_the_dropout_masks_of_the_whole_batch(place: str) -> None:
    made, (x_t, t, xi) = network(expansion=place, dropout=0.5).train(), inputs()

    def rows(part: slice) -> Tensor:
        torch.manual_seed(5)  # as the trainer does, on every process
        place_rows(made, part.start, len(x_t))
        return made(x_t[part], t[part], xi[part])

    whole = rows(slice(0, len(x_t)))
    parts = torch.cat([rows(slice(0, 1)), rows(slice(1, len(x_t)))])
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-5)


def test_without_a_place_the_network_is_a_mean_denoiser_of_fewer_parameters() -> None:
    made, (x_t, t, xi) = network(expansion="none").eval(), inputs()
    draws = made(x_t, t, xi)
    assert draws.shape == xi.shape
    assert torch.equal(draws, draws[:, :1].expand_as(draws))
    assert torch.equal(made(x_t, t, xi[:, 0]), made(x_t, t, xi[:, 1]))
    found = gradients(made)
    assert len(found) == len(list(made.parameters()))
    assert made.num_parameters() < network(expansion="middle").num_parameters()


def test_a_place_that_does_not_exist_is_refused_naming_those_that_do() -> None:
    with pytest.raises(
        ValueError, match="input, middle, up0, up1, up2, up3, output, none, not 'up4'"
    ):
        UNet(**{**SIZES, "expansion": "up4"})


def test_statistics_of_norms_are_taken_in_float32() -> None:
    from latentddm.networks.layers import Norm

    torch.manual_seed(0)
    x = (torch.randn(2, 16, 64, 64) + 8).bfloat16()  # bfloat16 sums would stick at 2048 or so
    exact = Norm(16)(x.float())
    assert Norm(16)(x).dtype == torch.bfloat16
    torch.testing.assert_close(Norm(16)(x).float(), exact, rtol=1e-2, atol=2e-2)
