"""A training that goes wrong without a number that is not finite is reported once, with a cure."""

from __future__ import annotations

from latentddm.scores import EnergyConfig
from latentddm.training.diagnostics import Diagnostics
from latentddm.training.objective import DistributionalObjective, Objective, PlainObjective

TOTAL = 100_000


def warnings(*lines: tuple[float, float], objective: Objective | None = None) -> list[str]:
    """The warnings over a log of (interaction, spread), a line each 1,000 images."""
    watch = Diagnostics(objective or DistributionalObjective(), TOTAL)
    return [
        warning
        for place, (interaction, spread) in enumerate(lines)
        for warning in watch(
            1000 * place, {"confinement": 1.0, "interaction": interaction, "spread": spread}
        )
    ]


def test_a_healthy_training_is_quiet() -> None:
    assert warnings(*[(0.9, 0.8)] * 50) == []


def test_draws_that_do_not_differ_for_long_are_reported_once_with_the_key_to_change() -> None:
    found = warnings(*[(0.001, 0.001)] * 50)
    assert len(found) == 1
    assert "ignores xi" in found[0]
    assert "objective.score.beta" in found[0]
    assert "After 5,000 images" in found[0]
    assert "score.lam" not in found[0]  # it is 1, the most there is
    lower = DistributionalObjective(score=EnergyConfig(lam=0.5))
    assert "raise objective.score.lam" in warnings(*[(0.001, 0.001)] * 50, objective=lower)[0]


def test_a_short_or_interrupted_spell_is_not_reported() -> None:
    assert warnings(*[(0.001, 0.1)] * 4, *[(0.5, 0.5)] * 3, *[(0.001, 0.1)] * 4) == []


def test_a_spread_that_explodes_is_reported_with_the_key_to_change() -> None:
    found = warnings(*[(0.9, 50.0)] * 50)
    assert len(found) == 1
    assert "50 standard deviations" in found[0]
    assert "optimizer.learning_rate" in found[0]


def test_plain_diffusion_has_no_interaction_to_miss() -> None:
    assert warnings(*[(0.0, 0.0)] * 50, objective=PlainObjective()) == []
