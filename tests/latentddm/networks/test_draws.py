"""Draws, wherever they split off: they are independent, differ, train every parameter, share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from accelerate import Accelerator
from tiny_networks import KINDS, UNET, VARIANTS, fresh, gradients, inputs, random_network
from torch import Tensor, nn

from latentddm.engine.seeding import BatchMasks
from latentddm.networks.blocks import NoiseBranch
from latentddm.networks.dit import TokenNoise
from latentddm.networks.dropout import place_masks
from latentddm.networks.network import NetworkConfig

every_variant = pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
every_kind = pytest.mark.parametrize("config", KINDS.values(), ids=KINDS.keys())


def assert_same_gradients(first: list[Tensor], second: list[Tensor]) -> None:
    assert len(first) == len(second)
    one, other = (torch.cat([part.flatten() for part in parts]) for parts in (first, second))
    assert (one - other).norm() <= 1e-6 * one.norm()


@every_variant
def test_a_draw_does_not_depend_on_the_others(config: NetworkConfig) -> None:
    """Sharing the trunk is an economy: draw by draw the network gives the same."""
    network, (x_t, t, xi) = random_network(config).eval(), inputs()
    together = network(x_t, t, xi)
    assert together.shape == xi.shape
    for j in range(xi.shape[1]):
        torch.testing.assert_close(together[:, j], network(x_t, t, xi[:, j]), rtol=1e-5, atol=1e-5)


@every_variant
def test_permuted_draws_and_permuted_images_are_permuted_results(config: NetworkConfig) -> None:
    network, (x_t, t, xi) = random_network(config).eval(), inputs(batch=3)
    order = torch.tensor([2, 0, 1])
    expected = network(x_t, t, xi)
    close: Callable[..., None] = torch.testing.assert_close
    close(network(x_t, t, xi[:, order]), expected[:, order], rtol=1e-5, atol=1e-5)
    close(network(x_t[order], t[order], xi[order]), expected[order], rtol=1e-5, atol=1e-5)


@every_variant
def test_the_trunk_runs_once_for_each_image_and_the_rest_once_for_each_draw(
    config: NetworkConfig,
) -> None:
    network, (x_t, t, xi) = random_network(config).eval(), inputs(batch=2, m=3)
    rows: dict[str, set[int]] = {"trunk": set(), "draw_parts": set()}
    for name, seen in rows.items():
        for part in getattr(network, name):
            part.register_forward_hook(
                lambda _, __, state, seen=seen: seen.add(len(getattr(state, "x", state)))
            )
    network(x_t, t, xi)
    assert rows["trunk"] <= {2}
    # The second way up of "output" begins with a part that only chooses maps.
    assert rows["draw_parts"] - {2} == {6}


@every_variant
def test_every_parameter_gets_a_gradient(config: NetworkConfig) -> None:
    network = random_network(config)
    found = gradients(network)
    assert len(found) == len(list(network.parameters()))
    assert all(gradient.abs().max() > 0 for gradient in found)


@pytest.mark.parametrize("expansion", ["input", "middle", "up0", "up1", "up3", "output"])
@pytest.mark.parametrize("up_blocks", [2, 3])
def test_every_parameter_gets_a_gradient_for_other_ways_up(expansion: str, up_blocks: int) -> None:
    network = random_network(UNET, expansion=expansion, up_blocks=up_blocks)
    found = gradients(network)
    assert len(found) == len(list(network.parameters()))
    assert all(gradient.abs().max() > 0 for gradient in found)


@every_variant
def test_a_new_network_draws_different_samples_everywhere_in_the_picture(
    config: NetworkConfig,
) -> None:
    network, (x_t, t, xi) = fresh(config), inputs()
    assert network(x_t, t, xi).var(dim=1).mean((0, 1)).min() > 1e-4


@every_variant
def test_a_new_network_learns_from_xi(config: NetworkConfig) -> None:
    """Zero gates must not close xi off: all of its weights have a gradient after three steps."""
    network, (x_t, t, xi) = fresh(config), inputs()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    first = gradients(network)
    assert len(first) == len(list(network.parameters()))
    of_xi = [parameter.grad for parameter in network.draw_parameters()]
    assert any(gradient.abs().max() > 0 for gradient in of_xi if gradient is not None)
    for _ in range(3):
        optimizer.zero_grad()
        network(x_t, t, xi).square().mean().backward()
        optimizer.step()
    gradients(network)
    for parameter in network.draw_parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().max() > 0


@every_variant
def test_xi_of_one_corner_reaches_the_other(config: NetworkConfig) -> None:
    if getattr(config, "expansion", "") in ("up1", "up3"):
        pytest.skip("a short way up is local")
    network, (x_t, t, xi) = random_network(config).eval(), inputs()
    changed = xi.clone()
    changed[..., :2, :2] += 3
    difference = (network(x_t, t, changed) - network(x_t, t, xi)).abs()
    assert difference[..., -2:, -2:].mean() > 1e-5


def test_each_number_of_a_patch_of_xi_has_a_gate_of_its_own() -> None:
    xi = torch.randn(1, 3, 2, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    patch = nn.functional.pixel_unshuffle(xi, 2)
    maps, tokens = NoiseBranch(3, width=8, stride=2, embedding=4), TokenNoise(4, 12)
    for module, given in ((maps, xi), (tokens, patch.flatten(2).transpose(1, 2))):
        with torch.no_grad():
            module.gate.bias.zero_()
            module.gate.bias[5] = 1  # numbers 4 ... 7 are the patch's of channel 1
        results = module(given, torch.zeros(1, 4))
        result = results[0] if isinstance(results, tuple) else results
        (read,) = torch.autograd.grad(result.square().sum(), xi, retain_graph=True)
        assert read.nonzero().tolist() == [[0, 1, 0, 1]]


@every_variant
def test_without_xi_the_result_is_that_of_xi_zero(config: NetworkConfig) -> None:
    network, (x_t, t, xi) = random_network(config).eval(), inputs()
    mean = network(x_t, t)
    assert mean.shape == x_t.shape
    assert torch.equal(network(x_t, t, None), mean)
    assert torch.equal(network(x_t, t, torch.zeros_like(x_t)), mean)
    for draw in network(x_t, t, torch.zeros_like(xi)).unbind(1):
        torch.testing.assert_close(draw, mean, rtol=1e-5, atol=1e-5)
    assert (network(x_t, t, xi[:, 0]) - mean).abs().max() > 1e-3


@every_variant
def test_without_xi_its_weights_cost_nothing_and_get_no_gradient(config: NetworkConfig) -> None:
    network, (x_t, t, _) = random_network(config), inputs()
    of_xi = {id(parameter) for parameter in network.draw_parameters()}
    assert of_xi
    ran = []
    for module in network.modules():
        own = [id(parameter) for parameter in module.parameters(recurse=False)]
        if own and of_xi.issuperset(own):
            module.register_forward_hook(lambda *_: ran.append(1))
    network(x_t, t).square().mean().backward()
    assert not ran
    without = {id(p) for p in network.parameters() if p.grad is None}
    assert without == of_xi
    assert all(p.grad.abs().max() > 0 for p in network.parameters() if p.grad is not None)


@every_variant
def test_the_two_pass_gradient_is_the_gradient(config: NetworkConfig) -> None:
    network = random_network(config)
    expected = gradients(network)
    network.one_draw_at_a_time = True
    assert_same_gradients(gradients(network), expected)


@pytest.mark.parametrize("name", ["unet, input", "unet, output", "dit, global"])
def test_the_two_pass_gradient_is_the_gradient_with_dropout_too(name: str) -> None:
    network = random_network(VARIANTS[name], dropout=0.3)
    expected = gradients(network)
    other = gradients(network, seed=1)
    assert (other[0] - expected[0]).norm() > 1e-3 * expected[0].norm()  # dropout was at work
    network.one_draw_at_a_time = True
    assert_same_gradients(gradients(network), expected)


@every_variant
def test_checkpointing_changes_no_bit_of_a_gradient(config: NetworkConfig) -> None:
    network = random_network(config, dropout=0.2)
    expected = gradients(network)
    network.enable_gradient_checkpointing()
    recomputed = []
    blocks = [m for m in network.modules() if type(m).__name__ in network._no_split_modules]
    for block in blocks:
        block.register_forward_pre_hook(lambda *_: recomputed.append(1))
    for gradient, right in zip(gradients(network), expected, strict=True):
        assert torch.equal(gradient, right)
    assert len(recomputed) == 2 * len(blocks)


@every_variant
def test_dropout_is_shared_by_the_draws_and_not_by_the_images(config: NetworkConfig) -> None:
    network, (x_t, t, xi) = random_network(config, dropout=0.5).train(), inputs()
    same = xi[:, :1].expand_as(xi)
    draws = network(x_t[:1].expand_as(x_t), t[:1].expand_as(t), same[:1].expand_as(xi))
    torch.testing.assert_close(draws[:, 0], draws[:, 2], rtol=1e-5, atol=1e-6)
    assert (draws[0] - draws[1]).abs().max() > 1e-3


@every_variant
def test_parts_of_a_batch_have_the_dropout_masks_of_the_whole_batch(config: NetworkConfig) -> None:
    network, (x_t, t, xi) = random_network(config, dropout=0.5).train(), inputs()

    masks = BatchMasks(5, 0, len(x_t), Accelerator(cpu=True))

    def rows(part: slice) -> Tensor:
        place_masks(network, partial(masks.draw, part))  # as the trainer does
        return network(x_t[part], t[part], xi[part])

    whole = rows(slice(0, len(x_t)))
    parts = torch.cat([rows(slice(0, 1)), rows(slice(1, len(x_t)))])
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-5)


@every_kind
def test_autocast_leaves_the_draws_in_float32_and_close(
    config: NetworkConfig,
) -> None:
    network, (x_t, t, xi) = fresh(config), inputs()
    exact = network(x_t, t, xi)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = network(x_t, t, xi)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, rtol=0.05, atol=0.05)
