"""Precision, recall, density, coverage: a case on a line, worked out by hand."""

from __future__ import annotations

import pytest
import torch

from latentddm.engine.errors import UserError
from latentddm.evaluation import pairs
from latentddm.evaluation.manifold import prdc


def line(*points: float) -> torch.Tensor:
    return torch.tensor(points)[:, None]


def test_a_case_worked_out_by_hand() -> None:
    # One neighbour. Reference 0, 1, 3, 7: radii 1, 1, 2, 4, so its balls are
    # [-1, 1], [0, 2], [1, 5], [3, 11]. Samples 0.5, 1.5, 4, 20: radii 1, 1, 2.5, 16, balls
    # [-0.5, 1.5], [0.5, 2.5], [1.5, 6.5], [4, 36].
    result = prdc(line(0.5, 1.5, 4, 20), line(0, 1, 3, 7), neighbours=1)
    assert result.precision.value == 3 / 4  # 20 lies in no ball
    assert result.recall.value == 4 / 4  # 0 and 1 in the first, 3 in the third, 7 in the fourth
    assert result.density.value == (2 + 2 + 2 + 0) / 4
    assert result.coverage.value == 4 / 4
    far = prdc(line(0.5, 0.6, 0.7, 0.8), line(0, 1, 3, 7), neighbours=1)
    assert (far.precision.value, far.density.value) == (1, 2)
    assert (far.recall.value, far.coverage.value) == (
        0,
        1 / 2,
    )  # the balls reach 0.1: none recalled


def test_equal_sets_are_perfect_and_distant_ones_have_nothing_in_common() -> None:
    points = torch.randn(80, 5, generator=torch.Generator().manual_seed(0))
    same, apart = prdc(points, points), prdc(points, points + 100)
    assert [part.value for part in vars(same).values()][:2] == [1, 1]
    assert same.coverage.value == 1
    assert [part.value for part in vars(apart).values()] == [0, 0, 0, 0]


def test_a_lost_mode_costs_recall_and_coverage_but_no_precision() -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(150, 3, generator=generator) + c for c in (-6, 6))
    reference = torch.cat([left, right])
    samples = torch.randn(150, 3, generator=generator) - 6
    result = prdc(samples, reference)
    assert result.precision.value > 0.9
    assert result.recall.value < 0.55
    assert result.coverage.value < 0.55


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    samples, reference = torch.randn(2, 60, 4, generator=generator)
    whole = [part.value for part in vars(prdc(samples, reference)).values()]
    monkeypatch.setattr(pairs, "BLOCK_ELEMENTS", 100)
    assert [part.value for part in vars(prdc(samples, reference)).values()] == whole


def test_too_few_images_for_the_neighbours_are_refused() -> None:
    for sides in ((5, 50), (50, 5)):
        with pytest.raises(UserError, match=r"prdc with 5 .*has 5"):
            prdc(*(torch.zeros(rows, 2) for rows in sides))
