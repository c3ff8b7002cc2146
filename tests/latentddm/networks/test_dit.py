"""The DiT: positions, patches, adaLN-zero, and the second way in of xi."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from tiny_networks import DIT, SHAPE, UNET, fresh, inputs, random_network
from torch import Tensor
from torch.nn import functional

from latentddm.networks.dit import DiT, DiTConfig, Positions, sinusoidal_positions
from latentddm.networks.network import NetworkConfig


def test_sinusoidal_positions_are_sines_and_cosines_of_row_and_column() -> None:
    table = sinusoidal_positions(5, 7, 8).unflatten(0, (5, 7))
    for row, column in ((0, 0), (4, 1), (2, 6)):
        expected = []
        for place in (row, column):
            angles = [place / 10_000 ** (4 * k / 8) for k in range(2)]
            expected += [math.sin(angle) for angle in angles]
            expected += [math.cos(angle) for angle in angles]
        torch.testing.assert_close(table[row, column], torch.tensor(expected))
    assert len(table.flatten(0, 1).unique(dim=0)) == 35


def test_learnt_positions_start_as_sinusoidal_ones_and_are_interpolated() -> None:
    learnt, fixed = Positions(16, grid=8), Positions(16)
    like = torch.zeros(1)
    assert torch.equal(learnt(8, 8, like), fixed(8, 8, like))
    with torch.no_grad():  # a plane is interpolated exactly
        rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
        learnt.table.copy_((rows + 10 * columns).flatten()[:, None].expand(-1, 16))
    found = learnt(16, 16, like).unflatten(0, (16, 16))[4:12, 4:12]
    centres = (torch.arange(16.0)[4:12] + 0.5) / 2 - 0.5
    expected = centres[:, None] + 10 * centres[None]
    torch.testing.assert_close(found, expected[..., None].expand(-1, -1, 16))


def swap_patches(x: Tensor, order: Tensor, patch: int = 2) -> Tensor:
    """Latents [..., C, H, W] with their patches in another order."""
    height = x.shape[-2] // patch
    patches = functional.pixel_unshuffle(x, patch).flatten(-2)[..., order]
    return functional.pixel_shuffle(patches.unflatten(-1, (height, -1)), patch)


def test_without_positions_permuted_patches_are_permuted_results_and_with_them_not() -> None:
    network, (x_t, t, xi) = random_network(DIT, positions="learnt", position_grid=4), inputs()
    network.eval()
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    permuted = network(swap_patches(x_t, order), t, swap_patches(xi, order))
    assert (permuted - swap_patches(network(x_t, t, xi), order)).abs().max() > 1e-2
    torch.nn.init.zeros_(network.positions.table)
    permuted = network(swap_patches(x_t, order), t, swap_patches(xi, order))
    expected = swap_patches(network(x_t, t, xi), order)
    torch.testing.assert_close(permuted, expected, rtol=1e-4, atol=1e-4)


def test_every_block_starts_as_the_identity_but_for_xi() -> None:
    network = fresh(DIT)
    tokens, condition = torch.randn(2, 6, 32), torch.randn(2, 32)
    for block in network.draw_parts:
        assert torch.equal(block(tokens, condition, condition, None), tokens)
        with_xi = block(tokens, condition, condition, torch.randn(2, 6, 12))
        assert (with_xi - tokens).std() > 0.05


@pytest.mark.parametrize("draw_blocks", [1, 3])
def test_xi_adds_as_much_at_the_start_however_many_blocks_read_it(draw_blocks: int) -> None:
    network = fresh(DIT, draw_blocks=draw_blocks, width=256, head_channels=64)
    tokens, condition = torch.zeros(64, 6, 256), network.time_embedding(torch.rand(64))
    x, xi = tokens, torch.randn(64, 6, 12)
    for block in network.draw_parts:
        x = block(x, condition, condition, xi)
    assert float(x.detach().std()) == pytest.approx(
        3**-0.5, rel=0.15
    )  # of one linear layer with torch's start


@pytest.mark.parametrize("config", [DIT, replace(UNET, patch_size=2)], ids=["dit", "unet"])
def test_global_noise_is_a_standard_normal_part_of_xi_for_all_positions(
    config: NetworkConfig,
) -> None:
    network = random_network(config, global_noise=True).eval()
    seen: list[Tensor] = []
    assert network.global_noise is not None
    network.global_noise.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    x_t, t, _ = inputs(batch=200)
    xi = torch.randn(200, *SHAPE, generator=torch.Generator().manual_seed(2))
    network(x_t, t, xi)
    (whole,) = seen
    assert whole.shape == (200, 1, 12)
    assert float(whole.std()) == pytest.approx(1, abs=0.05)
    without = random_network(config, global_noise=False).eval()
    assert network.num_parameters() > without.num_parameters()


def test_a_memory_format_changes_nothing() -> None:
    network, (x_t, t, xi) = random_network(DIT).eval(), inputs()
    expected = network(x_t, t, xi)
    network.memory_format = torch.channels_last
    assert torch.equal(network(x_t, t, xi), expected)


def test_in_half_precision_without_autocast_all_is_in_half_precision() -> None:
    network, (x_t, t, xi) = fresh(replace(DIT, global_noise=True)).bfloat16(), inputs()
    drawn = network(x_t.bfloat16(), t.bfloat16(), xi.bfloat16())
    assert drawn.dtype == torch.bfloat16


def test_the_size_of_published_ones() -> None:
    """DiT-B/2 of arXiv 2212.09748 has 130 million parameters."""
    config = DiTConfig(width=768, blocks=12, head_channels=64, classes=1000)
    with torch.device("meta"):
        assert DiT(latent_channels=4, **vars(config)).num_parameters() == pytest.approx(
            130e6, rel=0.02
        )
