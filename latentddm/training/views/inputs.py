"""The part of a training from which views are made."""

from __future__ import annotations

from dataclasses import dataclass

from accelerate import Accelerator
from torch import Tensor

from autoencoder.store import LatentStore
from latentddm.diffusion.schedules import Schedule
from latentddm.engine.seeding import derive_seed
from latentddm.scores.views import ViewInputs


@dataclass(frozen=True)
class TrainingInputs:
    """`scores.views.ViewInputs` of a training."""

    store: LatentStore
    schedule: Schedule
    seed: int
    accelerator: Accelerator

    def latents(self, count: int) -> Tensor:
        """The first latents of an order of their own, [count, C, H, W]; see `ViewInputs`."""
        return self.store.sample(count, derive_seed(self.seed, "views"))


def of_training(inputs: ViewInputs | None, kind: str) -> TrainingInputs:
    """The inputs of a training; ValueError for others, or for none."""
    if not isinstance(inputs, TrainingInputs):
        raise ValueError(
            f"the view '{kind}' needs the latents of a training; it cannot be made outside one"
        )
    return inputs
