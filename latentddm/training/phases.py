"""Phases: one training with several objectives, one after the other, on one network.

The mean of p(x_0 | x_t) is learnt fast, with one evaluation of the network for each x_t; a DDM that
begins from it has the rest of the posterior left to learn. A phase begins from the averaged weights
of the one before it, with a new optimizer and new averages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from latentddm.engine.optimizer import OptimizerConfig
from latentddm.engine.task import Span
from latentddm.training.objective import OBJECTIVES, DistributionalObjective, Objective
from latentddm.training.rivals import RIVALS

OBJECTIVES.update(RIVALS)


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One phase of a training."""

    images: int  # seen in it; in whole batches
    objective: Objective = field(default_factory=DistributionalObjective)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        """ValueError for a phase without images."""
        if self.images < 1:
            raise ValueError(f"images must be at least 1, not {self.images}")


def phase_spans(phases: Sequence[Phase], batch_size: int) -> list[Span]:
    """The images of each phase, one after the other."""
    spans = accumulate(
        phases,
        lambda before, phase: Span.after(before.end, phase.images, batch_size),
        initial=Span(0, 0),
    )
    return list(spans)[1:]


def describe_phase(phase: Phase, number: int, count: int) -> str:
    """One line: `phase 1 of 2: plain, 336,000 images`."""
    objective = phase.objective
    draws = f" of {objective.draw_count} draws" if objective.draw_count else ""
    return f"phase {number + 1} of {count}: {objective.kind}{draws}, {phase.images:,} images"
