"""Two tiny runs to look at: a DDM and plain diffusion."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from latentddm.engine.loop import LoopConfig
from latentddm.play.renderer import Renderer
from latentddm.training.generator import TrainConfig, train
from latentddm.training.objective import Objective

NETWORK = {"channels": 16, "multipliers": [1], "blocks": 1, "attention_levels": []}


def train_tiny_run(store: Path, output: Path, objective: Objective, **network: Any) -> Path:
    config = TrainConfig(
        store=str(store),
        output=str(output),
        network={**NETWORK, **network},
        objective=objective,
        loop=LoopConfig(images=16, batch_size=8),
    )
    return train(config).path


@pytest.fixture(scope="session")
def ddm_run(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "ddm"
    return train_tiny_run(tiny_store, output, Objective(draws=2))


@pytest.fixture(scope="session")
def plain_run(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "plain"
    return train_tiny_run(tiny_store, output, Objective.plain_diffusion(), expansion="none")


@pytest.fixture(scope="session")
def renderer(ddm_run: Path) -> Renderer:
    return Renderer.open(ddm_run)


@pytest.fixture(scope="session")
def plain_renderer(plain_run: Path) -> Renderer:
    return Renderer.open(plain_run)
