"""Trackers log over images seen, and a resumed run continues the same curves."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from messages import raises_naming
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_training import BATCH, TinyConfig, loop_config, train_tiny

from latentddm.engine.errors import UserError
from latentddm.engine.task import LoopConfig
from latentddm.engine.trackers import TRACKERS, require_trackers

WANDB = """
import json, pathlib
LOG = pathlib.Path(__file__).with_name("calls.jsonl")
def record(**values):
    with LOG.open("a") as file:
        file.write(json.dumps(values) + "\\n")
class Config:
    def update(self, values, **options):
        record(config=values)
config = Config()
class Run:
    def log(self, values, step=None, **options):
        record(step=step, loss=values["loss"])
    def finish(self):
        record(finished=True)
def init(**options):
    record(init=options)
    return Run()
"""


def config(output: Path, *trackers: str, steps: int = 4) -> TinyConfig:
    loop = loop_config(steps, checkpoint_every=2 * BATCH, trackers=trackers)
    return TinyConfig(output=str(output), loop=loop)


def curve(run: Path) -> list[int]:
    """The images seen at the points of TensorBoard's loss curve."""
    events = EventAccumulator(str(run / "events"))
    events.Reload()
    return [point.step for point in events.Scalars("loss")]


def test_tensorboard_has_one_curve_over_images_seen_after_a_resume(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train_tiny(config(run, "tensorboard"))
    assert curve(run) == [8, 16, 24, 32]
    # As after a kill at 32 images whose last checkpoint is the one at 16.
    shutil.rmtree(run / "checkpoints" / f"images-{32:012d}")
    train_tiny(config(run, "tensorboard"))
    assert curve(run) == [8, 16, 24, 32]


def test_wandb_gets_the_same_metrics_and_resumes_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "packages" / "wandb"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(WANDB)
    monkeypatch.syspath_prepend(package.parent)
    run = tmp_path / "run"
    first = config(run, "tensorboard", "wandb")
    train_tiny(first)
    train_tiny(replace(first, loop=replace(first.loop, images=48)))
    calls = [json.loads(line) for line in (package / "calls.jsonl").read_text().splitlines()]
    starts = [call["init"] for call in calls if "init" in call]
    assert len(starts) == 2
    assert starts[0]["id"] == starts[1]["id"]
    assert starts[0]["resume"] == "allow"
    assert [call["step"] for call in calls if "step" in call] == [8, 16, 24, 32, 40, 48]
    logged = next(call["config"] for call in calls if "config" in call)
    assert logged["loop"]["batch_size"] == 8
    assert curve(run) == [8, 16, 24, 32, 40, 48]


def test_a_run_can_have_no_tracker(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train_tiny(config(run))
    assert not (run / "events").exists()
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 4


@pytest.mark.parametrize(
    ("name", "remedy"), [("wanbd", ", ".join(TRACKERS)), ("aim", "pip install aim")]
)
def test_a_missing_tracker_is_named_before_the_run_is_made(
    tmp_path: Path, name: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    with raises_naming(UserError, "loop.trackers", f"'{name}'", remedy):
        require_trackers([name])
    with raises_naming(UserError, "loop.trackers", f"'{name}'", remedy):
        train_tiny(config(tmp_path / "run", name))
    assert not (tmp_path / "run").exists()


def test_the_default_is_tensorboard() -> None:
    assert LoopConfig().trackers == ("tensorboard",)
