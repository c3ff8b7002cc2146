"""A tiny run to look at."""

from __future__ import annotations

from pathlib import Path

import pytest

from latentddm.engine.config import build
from latentddm.play.renderer import Renderer
from latentddm.training.generator import TrainConfig, train


@pytest.fixture(scope="session")
def ddm_run(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = {
        "store": str(tiny_store),
        "output": str(tmp_path_factory.mktemp("runs") / "ddm"),
        "network": {"channels": 16, "multipliers": [1], "blocks": 1, "attention_levels": []},
        "objective": {"draws": 2},
        "loop": {"images": 16, "batch_size": 8},
    }
    return train(build(TrainConfig, config, "the test's config")).path


@pytest.fixture(scope="session")
def renderer(ddm_run: Path) -> Renderer:
    return Renderer.open(ddm_run)
