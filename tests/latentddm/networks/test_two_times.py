"""A network of two times: it reads the end of a step, starts as one that does not, costs no other.

Its derivatives by forward mode are those by finite differences, attention included.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_networks import KINDS, VARIANTS, fresh, inputs, random_network

from latentddm.networks.attention import forward_derivative
from latentddm.networks.network import NetworkConfig, NetworkModel

every_kind = pytest.mark.parametrize("config", KINDS.values(), ids=KINDS.keys())


def two_times(config: NetworkConfig, random: bool = False) -> NetworkModel:
    return (random_network if random else fresh)(config, times=2).eval()


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
def test_one_time_has_no_weights_for_a_second(config: NetworkConfig) -> None:
    one, two = fresh(config).state_dict(), fresh(config, times=2).state_dict()
    assert set(two) - set(one) == {"time_embedding.step.weight"}


@every_kind
def test_a_fresh_network_ignores_the_end_of_a_step_and_a_trained_one_reads_it(
    config: NetworkConfig,
) -> None:
    x_t, t, _ = inputs()
    s = 0.3 * t
    with torch.no_grad():
        fresh_one, trained = two_times(config), two_times(config, random=True)
        assert torch.equal(fresh_one(x_t, t, None, None, s), fresh_one(x_t, t))
        assert (trained(x_t, t, None, None, s) - trained(x_t, t)).abs().max() > 1e-3
        torch.testing.assert_close(trained(x_t, t, None, None, t), trained(x_t, t))  # length 0
    torch.nn.init.zeros_(trained.time_embedding.step.weight)
    trained(x_t, t, None, None, s).square().sum().backward()
    assert trained.time_embedding.step.weight.grad.abs().max() > 0  # it can learn to read it


@every_kind
def test_a_network_of_one_time_refuses_the_end_of_a_step(config: NetworkConfig) -> None:
    x_t, t, _ = inputs()
    with pytest.raises(ValueError, match=r"network\.times"):
        fresh(config)(x_t, t, None, None, t)


@every_kind
def test_the_frequencies_of_t_are_those_of_one_time_unless_they_are_chosen(
    config: NetworkConfig,
) -> None:
    """A comparison of methods is one of objectives: what all networks read is the same."""

    def frequencies(**settings: Any) -> torch.Tensor:
        return fresh(config, **settings).time_embedding.frequencies

    assert torch.equal(frequencies(times=1), frequencies(times=2))
    assert float(frequencies(times=2).max()) == pytest.approx(1000, rel=1e-5)
    for times in (1, 2):
        chosen = frequencies(times=times, time_frequency=32.0)
        assert float(chosen.max()) == pytest.approx(32, rel=1e-5)
    half = fresh(config, time_frequency=32.0).to(torch.bfloat16).time_embedding.frequencies
    assert torch.equal(half, chosen)


def test_frequencies_that_lie_below_the_lowest_are_refused() -> None:
    with pytest.raises(ValueError, match="time_frequency"):
        replace(KINDS["unet"], time_frequency=0.5)


@every_kind
def test_settings_that_make_no_network_of_two_times_are_refused(config: NetworkConfig) -> None:
    with pytest.raises(ValueError, match="times must be 1 or 2"):
        replace(config, times=3)
    with pytest.raises(ValueError, match="eps"):
        replace(config, times=2, prediction="eps")


@every_kind
def test_forward_derivatives_are_those_of_finite_differences(config: NetworkConfig) -> None:
    network = random_network(config, times=2, time_frequency=32.0).eval().double()
    x_t, t, _ = (value.double() for value in inputs())
    s, direction = 0.3 * t, torch.randn_like(x_t)

    def evaluate(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return network(x, time, None, None, s)

    value, slope = forward_derivative(evaluate, (x_t, t), (direction, torch.ones_like(t)))
    assert not value.requires_grad
    assert not slope.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(value, evaluate(x_t, t))
        after, before = (evaluate(x_t + h * direction, t + h) for h in (1e-5, -1e-5))
    torch.testing.assert_close(slope, (after - before) / 2e-5, rtol=1e-5, atol=1e-5)
