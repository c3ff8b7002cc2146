"""A training that pauses at one step, so that a kill comes exactly there.

python pausing.py IMAGES train CONFIG.yaml ...: the command `latentddm train` with a pause after the
log of a step.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from latentddm.engine.run import RunFolder

PAUSE = 600  # seconds, for the kill
PAUSED = "pauses"  # a line of the log


def pause_at(images: int) -> None:
    """Let the trainings of this process pause after the log line at `images` seen."""
    log_metrics = RunFolder.log_metrics

    def log_and_pause(self: RunFolder, seen: int, metrics: dict[str, float]) -> None:
        log_metrics(self, seen, metrics)
        if seen == images:
            time.sleep(PAUSE)

    RunFolder.log_metrics = log_and_pause  # type: ignore[method-assign]


def pause_before(images: int) -> None:
    """Let the generators of this process pause before the step at `images` seen, and say so."""
    from latentddm.training.task import GeneratorTask

    step = GeneratorTask.step

    def pause_and_step(self: GeneratorTask, batch: Any, seen: int, accumulator: Any) -> None:
        if seen == images:
            print(PAUSED, flush=True)
            time.sleep(PAUSE)
        step(self, batch, seen, accumulator)

    GeneratorTask.step = pause_and_step  # type: ignore[method-assign]


if __name__ == "__main__":
    from latentddm.cli import main

    pause_at(int(sys.argv[1]))
    raise SystemExit(main(sys.argv[2:]))
