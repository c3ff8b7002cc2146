"""The experiment's commands exist and fit together; it stops in time, and says when one fails."""

from __future__ import annotations

import importlib
import signal
import sys
import time
from argparse import Namespace
from pathlib import Path
from types import ModuleType

import pytest

from autoencoder.training import AutoencoderConfig
from latentddm.cli.arguments import find_config
from latentddm.cli.parser import build_parser
from latentddm.engine.config import load_config
from latentddm.engine.errors import Interrupted
from latentddm.training.distillation import DistillConfig
from latentddm.training.generator import TrainConfig
from latentddm.training.objective import PlainObjective

TOOLS = Path(__file__).parents[2] / "tools"
CONFIGS = {"train-autoencoder": AutoencoderConfig, "train": TrainConfig, "distill": DistillConfig}


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(TOOLS))
    return importlib.import_module("experiment")


@pytest.fixture
def options(tmp_path: Path) -> Namespace:
    return Namespace(
        images="faces",
        output=tmp_path,
        minutes=None,
        scale=0.5,
        samples=100,
        evaluations="1,2",
        many="20",
        churn="0,1",
        safety="0,0.02",
        grids="log_snr,power",
        features="inception",
        perceptual_file="alexnet.pth",
    )


def test_every_command_is_one_that_latentddm_takes(tool: ModuleType, options: Namespace) -> None:
    configs = {}
    for name, command in tool.training_stages(options):
        assert command[:3] == [sys.executable, "-m", "latentddm"]
        parsed = build_parser().parse_args(command[3:])
        if parsed.name in CONFIGS:
            kind = CONFIGS[parsed.name]
            configs[name] = load_config(kind, find_config(parsed.config), parsed.overrides)
    ddm, plain = configs["DDM"], configs["plain diffusion"]
    mean, draws = ddm.phases
    (only,) = plain.phases
    assert only.objective == mean.objective == PlainObjective()
    assert draws.objective.draw_count == 8
    assert ddm.network == plain.network
    assert mean.images + draws.images == only.images
    assert only.images == sum(tool.PHASE_IMAGES) // 2
    assert mean.optimizer == draws.optimizer == only.optimizer
    assert configs["student of plain diffusion"].teacher == plain.output


def test_the_comparisons_are_ones_that_compare_takes(tool: ModuleType, options: Namespace) -> None:
    compare = importlib.import_module("compare")
    few, many = (compare._parser().parse_args(c.command[2:]) for c in tool.comparisons(options))
    assert [text.partition("=")[0] for text in few.method] == ["DDM", "plain", "student"]
    assert few.metrics == ("fid", "kid", "energy")
    assert [text.partition("=")[0] for text in many.method] == ["DDM", "plain"]
    assert (few.evaluations, many.evaluations) == ((1, 2), (20,))
    assert few.output != many.output
    assert 1.0 in few.churn  # what a distilled student is to be sampled with


def test_it_stops_in_time_with_what_a_stage_has_saved(
    tool: ModuleType,
    options: Namespace,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    saved = options.output / "saved"
    script = (
        "import pathlib, signal, sys, time\n"
        f"def save(*_): pathlib.Path({str(saved)!r}).touch(); sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        f"pathlib.Path({str(options.output / 'ready')!r}).touch()\n"
        "time.sleep(60)\n"
    )
    stage = tool.Stage("patience", [sys.executable, "-c", script])
    monkeypatch.setattr(tool, "training_stages", lambda _: [stage])
    code = tool.main(["--images", "faces", "--output", str(options.output), "--minutes", "0.05"])
    assert code == 128 + signal.SIGTERM
    assert saved.exists()
    assert "in the stage patience; run the same command again" in capsys.readouterr().err


def test_a_stage_that_does_not_stop_is_killed(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = importlib.import_module("stages")
    monkeypatch.setattr(stages, "STOP_SECONDS", 0.2)
    deaf = "trap '' TERM; while true; do sleep 0.1; done"
    stage = stages.Stage("stubborn", ["sh", "-c", deaf])
    started = time.monotonic()
    with pytest.raises(Interrupted, match="the time was over in the stage stubborn"):
        stages._run_until(started + 1, stage)
    assert time.monotonic() - started < 50


def test_a_stage_that_fails_is_named(
    tool: ModuleType,
    options: Namespace,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stage = tool.Stage("autoencoder", [sys.executable, "-c", "raise SystemExit(2)"])
    monkeypatch.setattr(tool, "training_stages", lambda _: [stage])
    assert tool.main(["--images", "faces", "--output", str(options.output)]) == 1
    assert "The stage autoencoder ended with exit code 2" in capsys.readouterr().err


def test_a_scale_of_nothing_is_refused(tool: ModuleType, tmp_path: Path) -> None:
    assert tool.main(["--images", "faces", "--output", str(tmp_path), "--scale", "0"]) == 2
