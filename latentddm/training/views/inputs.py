"""The part of a training from which views are made."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from autoencoder.store import LatentStore
from latentddm.diffusion.schedules import Schedule
from latentddm.engine.seeding import derive_seed


@dataclass(frozen=True)
class TrainingInputs:
    """`scores.views.ViewInputs` of a training."""

    store: LatentStore
    schedule: Schedule
    seed: int

    def latents(self, count: int) -> Tensor:
        """The first latents of an order of their own, [count, C, H, W]; see `ViewInputs`."""
        count = min(count, len(self.store))
        return next(self.store.stream(count, seed=derive_seed(self.seed, "views"))).latents
