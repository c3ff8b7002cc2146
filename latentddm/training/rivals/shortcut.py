"""Shortcut models: a long step is two steps of half its length.

Source: Frans, Hafner, Levine, Abbeel, "One Step Diffusion via Shortcut Models", arXiv 2410.12557.
There time runs the other way (noise at 0), and the network reads the length of a step; here it
reads the end, s = t - length.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from latentddm.diffusion.flow_maps import move
from latentddm.diffusion.process import corrupt
from latentddm.diffusion.schedules import Schedule
from latentddm.training.objective import ObjectiveTerms, mean_square
from latentddm.training.protocols import Evaluator, RandomNumbers
from latentddm.training.rivals.flow_map import (
    FlowMapObjective,
    flow_map_terms,
    rows_where,
    velocity_of,
)

Velocity = Callable[[Tensor, Tensor, Tensor], Tensor]  # u of (x_t, t, s)


def dyadic_steps(level: Tensor, place: Tensor, finest: int) -> tuple[Tensor, Tensor]:
    """(t, length): lengths 1, 1/2, ..., 2/finest equally often, t any multiple of the length.

    level, place: uniform in [0, 1), [B]; finest: the number of steps of the finest grid, 2^k
    (section 3.2 of the paper, with 128).
    """
    levels = finest.bit_length() - 1
    count = 2.0 ** (level * levels).floor()  # steps of this length between noise and data
    return (1 + (place * count).floor()) / count, 1 / count


def self_consistency_target(
    velocity: Velocity, x_t: Tensor, t: Tensor, length: Tensor, finest: int
) -> Tensor:
    """u of a step as the mean of u in its two halves, [B, ...] (section 3.1 of the paper).

        u = (u_1 + u_2) / 2
        u_1 = u(x_t, t, t - length/2)
        u_2 = u(x', t - length/2, t - length),   x' = x_t - length/2 u_1

    Halves of the finest length, 1/finest, are steps along the velocity itself, u(x, t, t): there
    self-consistency meets flow matching.
    """
    half = length / 2
    middle = t - half
    along = torch.where(length * finest > 2, half, 0)  # the step that the network is asked for
    first = velocity(x_t, t, t - along)
    second = velocity(move(x_t, first, t, middle), middle, middle - along)
    return (first + second) / 2


@dataclass(frozen=True, kw_only=True)
class ShortcutObjective(FlowMapObjective):
    """A shortcut model: flow matching on most samples, self-consistency on a share of them.

    The targets of self-consistency are those of the averaged weights.
    """

    kind: Literal["shortcut"] = "shortcut"
    flow_map: Literal["dyadic"] = "dyadic"
    time_sampling: Literal["uniform", "logit_normal"] = "uniform"  # of flow matching
    consistency_share: float = 0.25
    finest: int = 128  # steps of the finest grid, a power of 2

    def __post_init__(self) -> None:
        """ValueError names a setting out of range."""
        super().__post_init__()
        if not 0 < self.consistency_share < 1:
            raise ValueError(f"consistency_share must lie in (0, 1), not {self.consistency_share}")
        if self.finest < 2 or self.finest.bit_count() > 1:
            raise ValueError(f"finest must be a power of 2 from 2 on, not {self.finest}")

    def numbers(self, random: RandomNumbers, x0: Tensor) -> dict[str, Tensor]:
        """t, s and noise; a sample of self-consistency has s < t."""
        t, noise = self.times(random.normal()), random.normal(*x0.shape[1:])
        long, level, place = random.uniform(3).unbind(1)
        start, length = dyadic_steps(level, place, self.finest)
        consistent = long < self.consistency_share
        t = torch.where(consistent, start, t)
        return {"t": t, "s": torch.where(consistent, t - length, t), "noise": noise}

    def evaluate(
        self,
        network: Evaluator,
        x0: Tensor,
        numbers: Mapping[str, Tensor],
        global_x0: Tensor,
        schedule: Schedule,
    ) -> ObjectiveTerms:
        """w_t ||u - target||^2 / D, [B]: flow matching and self-consistency (section 3.2)."""
        t, s, noise = numbers["t"], numbers["s"], numbers["noise"]
        x_t = corrupt(x0, t, noise, schedule)
        target, consistent = noise - x0, s < t
        rows = rows_where(consistent)

        def averaged(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
            return velocity_of(network.on(rows).average, x, t, s)

        with torch.no_grad():
            t_long, length = t[rows], (t - s)[rows]
            long = self_consistency_target(averaged, x_t[rows], t_long, length, self.finest)
        kept = consistent[rows]  # none, where the one row is there for the sharded network alone
        target = target.index_copy(0, rows[kept], long[kept].to(target.dtype))
        error = mean_square(velocity_of(network.with_gradient, x_t, t, s) - target)
        return flow_map_terms(self.weight(t, schedule) * error, error)
