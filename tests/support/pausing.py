"""A training that pauses after the log of one step, so that a kill comes exactly there.

python pausing.py IMAGES train CONFIG.yaml ...: the command `latentddm train` with such a pause.
"""

from __future__ import annotations

import sys
import time

from latentddm.engine.run import RunFolder

PAUSE = 600  # seconds, for the kill


def pause_at(images: int) -> None:
    """Let the trainings of this process pause after the log line at `images` seen."""
    log_metrics = RunFolder.log_metrics

    def log_and_pause(self: RunFolder, seen: int, metrics: dict[str, float]) -> None:
        log_metrics(self, seen, metrics)
        if seen == images:
            time.sleep(PAUSE)

    RunFolder.log_metrics = log_and_pause  # type: ignore[method-assign]


if __name__ == "__main__":
    from latentddm.cli import main

    pause_at(int(sys.argv[1]))
    raise SystemExit(main(sys.argv[2:]))
