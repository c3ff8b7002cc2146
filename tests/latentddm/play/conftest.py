"""A tiny run to look at."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_runs import generator_config

from latentddm.play.renderer import Renderer
from latentddm.training.generator import train


@pytest.fixture(scope="session")
def ddm_run(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(generator_config(tiny_store, tmp_path_factory.mktemp("runs") / "ddm")).path


@pytest.fixture(scope="session")
def renderer(ddm_run: Path) -> Renderer:
    return Renderer.open(ddm_run)
