"""Seconds of each stage of the demo."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

_log = logging.getLogger("latentddm")


@dataclass
class Stage:
    """One stage; `detail`: its work in figures."""

    name: str
    detail: str = ""
    seconds: float = 0.0


class StageClock:
    """Times stages and logs each."""

    def __init__(self) -> None:
        self.stages: list[Stage] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        """Time the block; the stage is kept when the block has ended well."""
        stage = Stage(name)
        _log.info("%s ...", name)
        started = time.monotonic()
        yield stage
        stage.seconds = time.monotonic() - started
        self.stages.append(stage)
        _log.info("%s: %.0f s (%s)", name, stage.seconds, stage.detail)

    def seconds(self, name: str) -> float:
        """Seconds of the stage `name`."""
        return next(stage.seconds for stage in self.stages if stage.name == name)

    def to_json(self) -> list[dict[str, Any]]:
        return [vars(stage) for stage in self.stages]
