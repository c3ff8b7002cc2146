"""What a process sends, draws and writes in a generator's training: by formula, no more."""

from __future__ import annotations

from pathlib import Path

import pytest
from cost_counters import COUNTER
from process_costs import Formulas, measure

from latentddm.engine.checkpoint import newest_checkpoint

pytestmark = pytest.mark.skipif(
    not COUNTER.is_file(), reason="needs Linux's count of written bytes"
)
HEADERS = 300  # bytes of gloo for one tensor that a process gathers from another one
NOTHING = 500  # bytes by which processes tell each other that a file is written


@pytest.mark.parametrize("count", [1, 2, 4])
def test_costs_of_a_process_are_those_of_the_formulas(
    tiny_store: Path, tmp_path: Path, count: int
) -> None:
    costs, run = measure(tiny_store, tmp_path / "training", count)
    formulas = Formulas.of(tiny_store, count)
    first, *others = costs
    for cost in costs:
        assert cost.step_sent == pytest.approx(formulas.replicated_sent(), rel=0.02)
        assert cost.step_normals == formulas.step_normals()
        assert cost.saving_sent < NOTHING
        assert cost.snapshot_sent < NOTHING
    assert [(cost.saving_written, cost.snapshot_written) for cost in others] == [(0, 0)] * (
        count - 1
    )

    checkpoint = newest_checkpoint(run.checkpoints)
    assert checkpoint is not None
    for folder, files, written, formula in (
        (checkpoint.path, 3 + formulas.E, first.saving_written, formulas.saving_written()),
        (run.averages, 1, first.snapshot_written, formulas.snapshot_written()),
    ):
        sizes = [path.stat().st_size for path in folder.iterdir()]
        assert len(sizes) == files
        assert written == sum(sizes)  # once, and nothing beside
        assert written == pytest.approx(formula, rel=0.05)  # names and shapes of the tensors


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_sharded_weights_are_sent_two_to_three_times(
    tiny_store: Path, tmp_path: Path, count: int
) -> None:
    costs, run = measure(tiny_store, tmp_path / "training", count, sharded=True)
    formulas = Formulas.of(tiny_store, count)
    checkpoint = newest_checkpoint(run.checkpoints)
    assert checkpoint is not None
    averaged = len(checkpoint.tensors("ema"))
    for cost in costs:
        # torch's reduce-scatter over gloo sends more than the part that it should.
        surplus = cost.reduce_scatter - formulas.share
        sent = cost.step_sent - surplus
        assert sent == pytest.approx(formulas.sharded_sent(), rel=0.04)
        assert 2 * formulas.share < sent < 3 * formulas.share
        assert cost.step_normals == formulas.step_normals()
        for gathered, formula, tensors in (
            (cost.saving_sent, formulas.saving_sent(), (3 + formulas.E) * averaged),
            (cost.snapshot_sent, formulas.snapshot_sent(), formulas.E * averaged),
        ):
            assert 0 <= gathered - formula <= NOTHING + HEADERS * (count - 1) * tensors
    assert all(cost.saving_written == 0 for cost in costs[1:])
    assert costs[0].saving_written == pytest.approx(formulas.saving_written(), rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("change", [{"micro_batches": 2}, {"targets": 2}], ids=str)
def test_micro_batches_send_nothing_more_and_several_targets_the_batch(
    tiny_store: Path, tmp_path: Path, change: dict[str, int]
) -> None:
    costs, _ = measure(tiny_store, tmp_path / "training", 2, **change)
    expected = Formulas.of(tiny_store, 2).replicated_sent(change.get("targets", 1))
    for cost in costs:
        assert cost.step_sent == pytest.approx(expected, rel=0.01)


@pytest.mark.slow
def test_sharded_weights_are_sent_for_each_micro_batch(tiny_store: Path, tmp_path: Path) -> None:
    whole, _ = measure(tiny_store, tmp_path / "whole", 2, sharded=True)
    parts, _ = measure(tiny_store, tmp_path / "parts", 2, sharded=True, micro_batches=2)
    for a, b in zip(whole, parts, strict=True):
        assert b.step_sent == pytest.approx(2 * a.step_sent, rel=0.01)
