"""The inputs of views, without a training: latents in memory."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from latentddm.diffusion.schedules import FlowSchedule, Schedule


@dataclass(frozen=True)
class InMemory:
    """`ViewInputs` of the latents `data` [N, C, H, W]."""

    data: Tensor
    schedule: Schedule = FlowSchedule()

    def latents(self, count: int) -> Tensor:
        return self.data[:count]
