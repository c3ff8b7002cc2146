"""The scale of xi as a command or a config gives it: a number, one for each evaluation, a range."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from latentddm.diffusion.solvers import evaluations_of, steps_within

Scales = float | tuple[float, ...]


@dataclass(frozen=True)
class ScaleRange:
    """Evenly from the first evaluation's scale to the last one's: 1..0.25 is 1, 0.75, 0.5, 0.25."""

    first: float
    last: float

    def over(self, evaluations: int) -> tuple[float, ...]:
        """The scale of each evaluation; of one evaluation the first."""
        gaps = max(evaluations - 1, 1)
        return tuple(
            self.first + (self.last - self.first) * k / gaps for k in range(max(evaluations, 1))
        )


FALLING = ScaleRange(1.0, 0.25)
"""For latents of MANY_NUMBERS or more: whole pictures at a small loss of variety."""

MANY_NUMBERS = 1000  # of a latent; from here on draws of a small network hardly hang together


def has_many_numbers(shape: Sequence[int]) -> bool:
    """Whether latents [C, H, W] have MANY_NUMBERS or more."""
    return math.prod(shape) >= MANY_NUMBERS


def read_scales(text: str, separator: str) -> Scales | ScaleRange:
    """0.8, or 0.8,0.9 with that separator, or 1..0.25; ValueError for another text."""
    first, dots, last = text.partition("..")
    if dots:
        return ScaleRange(float(first), float(last))
    numbers = tuple(float(number) for number in text.split(separator))
    return numbers[0] if len(numbers) == 1 else numbers


def scales_of(given: Scales | ScaleRange, solver: str, steps: int) -> Scales:
    """A range as one scale for each evaluation of a solver in `steps` or fewer; others as given."""
    if isinstance(given, ScaleRange):
        return given.over(evaluations_of(solver, steps_within(solver, steps)))
    return given


def cut_scales(scales: Scales, evaluations: int) -> Scales:
    """The first scales, as many as there are evaluations; one number for those that are alike."""
    if not isinstance(scales, tuple):
        return scales
    kept = scales[:evaluations]
    return kept[0] if len(set(kept)) == 1 else kept


def format_scales(scales: Scales, separator: str) -> str:
    """0.8, or the scales of the evaluations with that separator."""
    each = scales if isinstance(scales, tuple) else (scales,)
    return separator.join(f"{scale:.3g}" for scale in each)
