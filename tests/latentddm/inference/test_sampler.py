"""A run's sampler: exact for latents of few numbers, for many one that draws whole pictures."""

from __future__ import annotations

import pytest

from latentddm.inference.sampler import SamplerConfig, fitting_sampler
from latentddm.inference.settings import SamplingConfig


def test_few_numbers_are_sampled_exactly() -> None:
    exact = fitting_sampler(None, (6, 4, 4))
    assert exact.settings(4) == SamplingConfig(steps=4)
    assert exact.describe() == "DDIM"


def test_many_are_sampled_by_unipc_and_with_less_xi_towards_data() -> None:
    many = fitting_sampler(None, (32, 8, 8))
    draws, mean = many.settings(4), many.for_network(reads_xi=False).settings(4)
    assert draws.xi_scale == (1.0, 0.75, 0.5, 0.25)
    assert mean.xi_scale == 1.0
    assert draws.solver == mean.solver == "unipc"  # one solver and grid for both
    assert draws.grid == mean.grid == "power"
    assert many.describe() == "UniPC, ξ × 1 to 0.25"
    assert many.for_network(reads_xi=False).describe() == "UniPC"
    assert many.for_network(reads_xi=False, flow_map=True).settings(2) == SamplingConfig(steps=2)


@pytest.mark.parametrize("scales", [(0.8,), (1, 0.5, 0.2), (-1, 1), (float("nan"), 1)])
def test_scales_other_than_two_are_refused(scales: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="two numbers"):
        SamplerConfig(xi_scale=scales)  # type: ignore[arg-type]


def test_a_sampler_that_is_given_is_taken_for_all_latents() -> None:
    given = SamplerConfig(solver="deis", xi_scale=(0.5, 0.5))
    assert fitting_sampler(given, (6, 4, 4)) is fitting_sampler(given, (32, 8, 8)) is given
