"""The learning rate of every step of the trainings in a test."""

from __future__ import annotations

import pytest
import torch

from latentddm.engine.trainable_module import TrainableModule


def record_learning_rates(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A list to which each step from now on appends its rate."""
    rates: list[float] = []
    unrecorded = TrainableModule.step

    def step(self: TrainableModule, images: int) -> torch.Tensor:
        norm = unrecorded(self, images)
        rates.append(self.optimizer.param_groups[0]["lr"])
        return norm

    monkeypatch.setattr(TrainableModule, "step", step)
    return rates
