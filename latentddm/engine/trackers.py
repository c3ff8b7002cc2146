"""Trackers of the metrics besides metrics.jsonl: TensorBoard, W&B and others, through accelerate.

`loop.trackers` names them. The x axis is images seen, and a resumed run continues the same curves.
Only a named tracker that is online sends anything (W&B stays local with WANDB_MODE=offline).
"""

from __future__ import annotations

import importlib.util
import uuid
from collections.abc import Sequence
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import TensorBoardTracker

from latentddm.engine.atomic_io import write_text
from latentddm.engine.errors import UserError
from latentddm.engine.run import RunFolder

TENSORBOARD = "tensorboard"
TRACKERS = (TENSORBOARD, "wandb", "trackio", "mlflow", "swanlab", "comet_ml", "aim", "clearml")
PROJECT = "latentddm"


def require_trackers(names: Sequence[str]) -> None:
    """UserError for a tracker that accelerate lacks or that is not installed."""
    for name in names:
        if name not in TRACKERS:
            raise UserError(f"loop.trackers has '{name}'; choose from {', '.join(TRACKERS)}.")
        if importlib.util.find_spec(name) is None:
            raise UserError(
                f"loop.trackers has '{name}', which is not installed; run `pip install {name}`."
            )


def start_trackers(
    accelerator: Accelerator, names: Sequence[str], run: RunFolder, images: int
) -> None:
    """Open the trackers of a run that has seen `images`.

    TensorBoard's events are in RUN/events; those after the checkpoint of a resumed run are purged.
    W&B resumes its run by the id in RUN/tracker_id.
    """
    require_trackers(names)
    chosen: list[Any] = [
        TensorBoardTracker("events", str(run.path), purge_step=images + 1 if images else None)
        if name == TENSORBOARD
        else name
        for name in names
    ]
    accelerator.log_with = chosen
    options = {"dir": str(run.path), "name": run.path.name, "resume": "allow"}
    if accelerator.is_main_process and "wandb" in names:
        options["id"] = _identity(run)
    accelerator.init_trackers(PROJECT, init_kwargs={"wandb": options})
    for tracker in accelerator.trackers:
        if tracker.name != TENSORBOARD:
            tracker.store_init_configuration(run.read_config())


def _identity(run: RunFolder) -> str:
    """A unique id of the run, made once and kept in its folder."""
    path = run.path / "tracker_id"
    if not path.is_file():
        write_text(path, uuid.uuid4().hex)
    return path.read_text(encoding="utf-8").strip()
