"""The demo's sampler: exact for latents of few numbers, for many one that draws whole pictures."""

from __future__ import annotations

import pytest

from latentddm.demo.sampler import DemoSampler, fitting_sampler
from latentddm.inference.settings import SamplingConfig


def test_few_numbers_are_sampled_exactly_and_many_with_less_xi_towards_data() -> None:
    exact = fitting_sampler(None, (6, 4, 4))
    assert exact.settings(4, draws=True, batch_size=64) == SamplingConfig(
        steps=4, xi_scale=(1,) * 4
    )
    assert exact.describe(draws=True) == "DDM (energy score)"
    assert exact.describe(draws=False) == "plain diffusion (DDIM)"
    many = fitting_sampler(None, (32, 8, 8))
    ddm, plain = (many.settings(4, draws, batch_size=64) for draws in (True, False))
    assert ddm.xi_scale == (1.0, 0.75, 0.5, 0.25)
    assert plain.xi_scale == 1.0
    assert ddm.solver == plain.solver == "unipc"  # one solver and grid for both
    assert ddm.grid == plain.grid == "power"
    assert many.describe(draws=False) == "plain diffusion (UniPC)"
    assert many.describe(draws=True) == "DDM (energy score, UniPC, ξ × 1 to 0.25)"


@pytest.mark.parametrize("scales", [(0.8,), (1, 0.5, 0.2), (-1, 1), (float("nan"), 1)])
def test_scales_other_than_two_are_refused(scales: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="two numbers"):
        DemoSampler(xi_scale=scales)  # type: ignore[arg-type]


def test_a_sampler_that_is_given_is_taken_for_all_latents() -> None:
    given = DemoSampler(solver="deis", xi_scale=(0.5, 0.5))
    assert fitting_sampler(given, (6, 4, 4)) is fitting_sampler(given, (32, 8, 8)) is given
