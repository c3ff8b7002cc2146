"""The inputs of every verb, made once."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import Command, make_commands


@pytest.fixture(scope="session")
def commands(
    tmp_path_factory: pytest.TempPathFactory, tiny_autoencoder: Path, tiny_store: Path
) -> dict[str, Command]:
    return make_commands(tmp_path_factory.mktemp("commands"), tiny_autoencoder, tiny_store)
