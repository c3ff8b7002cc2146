"""Trackers are told the figures at images seen, and a resumed run goes on in the same curves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from latentddm.engine.config import build
from latentddm.engine.errors import UserError
from latentddm.engine.task import LoopConfig
from latentddm.engine.trackers import require_trackers
from latentddm.training.config import TrainConfig
from latentddm.training.generator import train

STAND_IN = """
import json, pathlib
LOG = pathlib.Path(__file__).with_name("calls.jsonl")
def note(**values):
    with LOG.open("a") as file:
        file.write(json.dumps(values) + "\\n")
class Config:
    def update(self, values, **options):
        note(config=values)
config = Config()
class Run:
    def log(self, values, step=None, **options):
        note(step=step, loss=values["loss"])
    def finish(self):
        note(finished=True)
def init(**options):
    note(init=options)
    return Run()
"""


def config(tiny_store: Path, output: Path, images: int = 32, **loop: object) -> TrainConfig:
    values = {
        "store": str(tiny_store),
        "output": str(output),
        "network": {"channels": 16, "multipliers": [1], "blocks": 1, "attention_levels": []},
        "phases": [{"images": images, "objective": {"kind": "ddm", "draws": 2}}],
        "loop": {"batch_size": 8, "log_every": 8, "checkpoint_every": 16, **loop},
    }
    return build(TrainConfig, values, "the test")


def curve(run: Path) -> list[int]:
    """The images seen at the points of TensorBoard's loss curve."""
    events = EventAccumulator(str(run / "events"))
    events.Reload()
    return [point.step for point in events.Scalars("loss")]


def test_tensorboard_shows_one_curve_over_images_seen_after_a_resume(
    tiny_store: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    train(config(tiny_store, run))
    assert curve(run) == [8, 16, 24, 32]
    # As after a kill at 32 images whose last checkpoint is that at 16.
    shutil.rmtree(run / "checkpoints" / f"images-{32:012d}")
    train(config(tiny_store, run))
    assert curve(run) == [8, 16, 24, 32]


def test_another_tracker_by_name_is_told_the_same_and_finds_its_run_again(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "packages" / "wandb"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(package.parent)
    run = tmp_path / "run"
    first = config(tiny_store, run, trackers=["tensorboard", "wandb"])
    train(first)
    train(config(tiny_store, run, 48, trackers=["tensorboard", "wandb"]))
    calls = [json.loads(line) for line in (package / "calls.jsonl").read_text().splitlines()]
    starts = [call["init"] for call in calls if "init" in call]
    assert len(starts) == 2
    assert starts[0]["id"] == starts[1]["id"]
    assert starts[0]["resume"] == "allow"
    assert [call["step"] for call in calls if "step" in call] == [8, 16, 24, 32, 40, 48]
    told = next(call["config"] for call in calls if "config" in call)
    assert told["loop"]["batch_size"] == 8
    assert curve(run) == [8, 16, 24, 32, 40, 48]


def test_no_tracker_at_all_is_a_choice(tiny_store: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(config(tiny_store, run, trackers=[]))
    assert not (run / "events").exists()
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 4


@pytest.mark.parametrize(
    ("name", "said"), [("wanbd", "none of tensorboard"), ("aim", "pip install aim")]
)
def test_a_tracker_that_is_not_there_is_named_before_anything_is_made(
    tiny_store: Path, tmp_path: Path, name: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    with pytest.raises(UserError, match=said):
        require_trackers([name])
    with pytest.raises(UserError, match=said):
        train(config(tiny_store, tmp_path / "run", trackers=[name]))
    assert not (tmp_path / "run").exists()


def test_the_default_is_tensorboard() -> None:
    assert LoopConfig().trackers == ("tensorboard",)
