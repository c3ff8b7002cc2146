"""Generators that train in a second, for the tests that need a run: configs, stops, weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from latentddm.engine.checkpoint import newest_checkpoint
from latentddm.engine.optimizer import OptimizerConfig
from latentddm.engine.run import RunFolder
from latentddm.engine.task import LoopConfig
from latentddm.networks.network import NetworkConfig
from latentddm.networks.unet import UNetConfig
from latentddm.training.config import TrainConfig
from latentddm.training.generator import train
from latentddm.training.objective import DistributionalObjective, Objective, PlainObjective
from latentddm.training.phases import Phase
from latentddm.training.task import GeneratorTask

BATCH = 8
UNET = UNetConfig(
    channels=16, multipliers=(1, 2), blocks=1, attention_levels=(1,), head_channels=16
)
ONE_LEVEL = UNetConfig(channels=16, multipliers=(1,), blocks=1, attention_levels=())
PLAIN = PlainObjective()
TWO_DRAWS = DistributionalObjective(draws=2)


def phase(images: int, objective: Objective = TWO_DRAWS, rate: float = 1e-3) -> Phase:
    optimizer = OptimizerConfig(learning_rate=rate, warmup_images=16)
    return Phase(images=images, objective=objective, optimizer=optimizer)


def generator_config(
    store: Path | str,
    output: Path | str,
    *phases: Phase,
    network: NetworkConfig = ONE_LEVEL,
    **changes: object,
) -> TrainConfig:
    """A config of these phases, two draws on 16 images by default; more keys of TrainConfig."""
    loop = LoopConfig(batch_size=BATCH, log_every=8, preview_every=48, checkpoint_every=16)
    values = {"loop": loop, "network": network, "phases": phases or (phase(16),), **changes}
    return TrainConfig(store=str(store), output=str(output), **values)  # type: ignore[arg-type]


def train_until(images: int, config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train, and be interrupted (Ctrl-C) before the step that begins at `images` seen."""
    step = GeneratorTask.step

    def interrupted(self: GeneratorTask, batch: Any, seen: int, accumulator: Any) -> None:
        if seen >= images:
            raise KeyboardInterrupt
        step(self, batch, seen, accumulator)

    with monkeypatch.context() as patch:
        patch.setattr(GeneratorTask, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(config)


def final_weights(run: RunFolder) -> dict[str, torch.Tensor]:
    """Every tensor of a run's newest checkpoint, by file and name."""
    checkpoint = newest_checkpoint(run.checkpoints)
    assert checkpoint is not None
    return {
        f"{path.stem}/{name}": tensor
        for path in checkpoint.path.glob("*.safetensors")
        for name, tensor in load_file(path).items()
    }
