"""An experiment fills its hours: sized by rates, within the time, and its commands fit together."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from argparse import Namespace
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from messages import assert_names

from autoencoder.models import load_autoencoder
from autoencoder.store import LatentStore
from autoencoder.training import AutoencoderConfig
from latentddm.cli import main
from latentddm.cli.arguments import find_config
from latentddm.cli.parser import build_parser
from latentddm.demo.plan import WIDTHS, NetworkSpeed
from latentddm.engine.config import load_config
from latentddm.engine.errors import Interrupted, UserError
from latentddm.inference.xi_scale import ScaleRange
from latentddm.training.config import TrainConfig
from latentddm.training.objective import PlainObjective

TOOLS = Path(__file__).parents[2] / "tools"
PORTRAITS = Path(__file__).parents[2] / "autoencoder" / "pretrained" / "portraits"
HOUR = 3600.0


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(TOOLS))
    return importlib.import_module("experiment")


@pytest.fixture
def planning(tool: ModuleType) -> ModuleType:
    return importlib.import_module("experiment_plan")


@pytest.fixture
def commands(tool: ModuleType) -> ModuleType:
    return importlib.import_module("experiment_stages")


@pytest.fixture
def options(tmp_path: Path) -> Namespace:
    return Namespace(
        images="portraits:200",
        hours=0.1,
        autoencoder=str(PORTRAITS),
        size=64,
        alone=False,
        output=tmp_path / "experiment",
        minutes=None,
        perceptual_file=None,
    )


def rates_of(planning: ModuleType, faster: float = 1.0, **changes: Any) -> Any:
    """Two slow cores, or a machine so many times faster, and all networks measured on it."""
    networks = tuple(
        NetworkSpeed(
            channels=channels,
            plain=3e-3 * (channels / 128) ** 1.5 / faster,
            ddm=9e-3 * (channels / 128) ** 1.5 / faster,
        )
        for channels, _ in WIDTHS
    )
    rates = planning.Rates(
        start=8.0,
        read=2e-3 / faster,
        encode=0.035 / faster,
        decode=0.035 / faster,
        autoencoder=0.0,
        evaluation=1e-3 / faster,
        describe={"inception": 0.3 / faster, "pyramid-v2": 3e-3 / faster},
        distance={"inception": 10.0 / faster, "pyramid-v2": 0.5 / faster},
        networks=networks,
    )
    return replace(rates, **changes)


def work_of(planning: ModuleType, hours: float = 1.0, **changes: Any) -> Any:
    cells = {"tried": (1, 1, 1, 2, 2, 2, 4, 4, 4, 8, 8, 8, 1, 2, 4, 8), "reported": (1, 2, 4, 8)}
    work = planning.Work(seconds=HOUR * hours, available=20_000, batch=64, **cells)
    return replace(work, **changes)


TAKEN = {"measurement": 60.0}


@pytest.mark.parametrize("faster", [1.0, 300.0])
@pytest.mark.parametrize("hours", [0.3, 1.0, 24.0])
@pytest.mark.parametrize("changes", [{}, {"autoencoder": 0.05}], ids=["given", "trained"])
def test_the_plan_fills_the_hours(
    planning: ModuleType, faster: float, hours: float, changes: dict[str, float]
) -> None:
    changes = {name: value / faster for name, value in changes.items()}
    work, rates = work_of(planning, hours), rates_of(planning, faster, **changes)
    plan = planning.make_plan(work, rates, TAKEN, None)
    assert 0.9 * work.seconds <= sum(plan.seconds.values()) <= 1.01 * work.seconds
    assert ("autoencoder" in plan.seconds) == (plan.autoencoder_images > 0) == bool(changes)
    lines = plan.describe().splitlines()
    assert [line.split("  ")[1].strip() for line in lines] == [*plan.seconds, "in all"]
    assert f"{plan.plain_images:,} images seen" in plan.describe()


def test_a_faster_machine_gets_a_wider_network_more_samples_and_fid(planning: ModuleType) -> None:
    slow = planning.make_plan(work_of(planning), rates_of(planning), TAKEN, None)
    fast = planning.make_plan(work_of(planning), rates_of(planning, 300.0), TAKEN, None)
    assert fast.channels > slow.channels
    assert fast.seen > slow.seen
    assert fast.samples > slow.samples
    assert (slow.features, fast.features) == ("pyramid-v2", "inception")
    assert fast.samples >= planning.FEWEST_FOR_FID
    minutes = partial(planning.minutes_of_fid, work_of(planning), rates_of(planning), slow)
    assert minutes("inception") > slow.seconds["comparison"] / 60
    assert minutes("features that cannot be had") is None
    assert slow.plain_images / slow.seen == pytest.approx(0.75, abs=0.01)
    assert slow.plain_images % 64 == slow.ddm_images % 64 == 0


def test_fid_needs_enough_images_and_is_left_where_the_time_went(planning: ModuleType) -> None:
    """FID of fewer images than FEWEST_FOR_FID is bias; trainings may take the time for it."""
    rates = rates_of(planning, 300.0)
    few = planning.make_plan(work_of(planning, available=300), rates, TAKEN, None)
    assert few.features == "pyramid-v2"
    work = work_of(planning, 0.3)
    first = planning.make_plan(work, rates, TAKEN, None)
    assert first.features == "inception"
    taken = {**TAKEN, "latents": 1.0, "DDM": 1.0, "plain diffusion": work.seconds - 80}
    late = planning.make_plan(work, rates, taken, first)  # 18 seconds are left
    assert (late.features, late.seen) == ("pyramid-v2", first.seen)


def test_without_plain_diffusion_the_ddm_sees_more(planning: ModuleType) -> None:
    both = planning.make_plan(work_of(planning), rates_of(planning), TAKEN, None)
    alone = planning.make_plan(work_of(planning, rival=False), rates_of(planning), TAKEN, None)
    assert alone.seen > 1.3 * both.seen
    assert "plain diffusion" not in alone.seconds


def test_later_stages_take_up_what_earlier_ones_lost(planning: ModuleType) -> None:
    """An encoding that took three times its time; then trainings that took 15 % more."""
    work, rates = work_of(planning), rates_of(planning)
    first = planning.make_plan(work, rates, TAKEN, None)
    taken = {**TAKEN, "latents": 3 * first.seconds["latents"]}
    second = planning.make_plan(work, rates, taken, first)
    assert (second.images, second.channels) == (first.images, first.channels)
    assert second.seen < first.seen
    assert sum(second.seconds.values()) == pytest.approx(work.seconds, rel=0.05)
    trained = {name: 1.15 * second.seconds[name] for name in ("DDM", "plain diffusion")}
    third = planning.make_plan(work, rates, {**taken, **trained}, second)
    assert third.seen == second.seen  # both generators have seen as many images
    assert 0 < third.samples < second.samples
    assert sum(third.seconds.values()) == pytest.approx(work.seconds, rel=0.05)


def test_too_few_hours_are_refused_with_the_time_of_the_least_work(planning: ModuleType) -> None:
    with pytest.raises(UserError) as caught:
        planning.make_plan(work_of(planning, 0.02), rates_of(planning), TAKEN, None)
    assert_names(str(caught.value), "--hours", "0.02", "--size")


def stand_in(tool: ModuleType, monkeypatch: pytest.MonkeyPatch, done: list[Any]) -> None:
    """Rates as if measured, and stages that are recorded and not run."""
    planning = importlib.import_module("experiment_plan")
    monkeypatch.setattr(tool, "measure_rates", lambda *_: rates_of(planning, 30.0, start=0.1))
    monkeypatch.setattr(tool, "run_stages", lambda stages, minutes: done.extend(stages))
    monkeypatch.setattr(tool, "report", lambda *_: "the report")
    begun = SimpleNamespace(create_time=time.time)  # not the start of these tests
    monkeypatch.setattr(tool, "psutil", SimpleNamespace(Process=lambda: begun))


def arguments(options: Namespace, *more: str) -> list[str]:
    return [
        *("--images", options.images, "--hours", str(options.hours), "--size", "64"),
        *("--autoencoder", options.autoencoder, "--output", str(options.output), *more),
    ]


def test_every_command_is_one_that_latentddm_takes(
    tool: ModuleType, options: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[Any] = []
    stand_in(tool, monkeypatch, done)
    assert tool.main(arguments(options)) == 0
    assert [stage.name for stage in done] == ["latents", "DDM", "plain diffusion", "comparison"]
    kept = json.loads((options.output / "plan.json").read_text())["plan"]
    encode = build_parser().parse_args(done[0].command[3:])
    assert (encode.num, encode.flips, encode.size) == (kept["images"], True, 64)
    ddm, plain = (
        load_config(TrainConfig, build_parser().parse_args(stage.command[3:]).config)
        for stage in done[1:3]
    )
    mean, draws = ddm.phases
    (only,) = plain.phases
    assert only.objective == mean.objective == PlainObjective()
    assert draws.objective.draw_count > 1
    assert mean.images + draws.images == only.images
    assert ddm.network == plain.network
    assert ddm.network.channels == kept["channels"]
    compare = importlib.import_module("compare").make_parser().parse_args(done[3].command[2:])
    assert compare.method[0].endswith("ddm:unipc/power")
    assert compare.method[1].endswith("plain:unipc/uniform,unipc/power")
    ranges = (1.0, 0.9, 0.7, 0.5), ScaleRange(1.0, 0.5), ScaleRange(1.0, 0.25)
    assert compare.xi_scales == (0.8, 1.0, *ranges)
    assert compare.confirm == compare.reference_images == kept["samples"]
    assert kept["samples"] <= 2 * compare.samples <= kept["samples"] + 1
    alike = 3  # in one evaluation all ranges are 1
    tried, reported = tool.compared(rival=True)
    assert len(tried) == len(compare.evaluations) * (5 + 2) - alike
    assert len(reported) == len(compare.evaluations) * (1 + 2)


def test_without_a_reference_an_autoencoder_is_trained_and_used(
    commands: ModuleType, planning: ModuleType, options: Namespace
) -> None:
    options.autoencoder, options.perceptual_file = None, "alexnet.pth"
    plan = planning.Plan(autoencoder_images=640, images=100, seconds={})
    train = commands.stage_of("autoencoder", plan, options).command
    parsed = build_parser().parse_args(train[3:])
    config = load_config(AutoencoderConfig, find_config(parsed.config), parsed.overrides)
    assert (config.loop.images, config.size, config.images) == (640, 64, "portraits:200")
    assert config.loss.perceptual_file == "alexnet.pth"
    encode = build_parser().parse_args(commands.stage_of("latents", plan, options).command[3:])
    assert encode.autoencoder == str(Path(config.output) / "autoencoder")


def test_larger_latents_have_the_larger_network_and_posterior_noise(
    commands: ModuleType, options: Namespace
) -> None:
    autoencoder = load_autoencoder(PORTRAITS)
    for edge, levels, patch in ((4, 1, 4), (8, 1, 2), (16, 2, 2), (32, 2, 2)):
        options.size = edge * autoencoder.factor
        network = commands.generator_config(options, autoencoder).network
        large = autoencoder.latent_channels * edge**2 >= 1000
        assert network.noise == ("posterior" if large else "white")
        assert network.gaussian_mean == large
        assert (len(network.multipliers), network.patch_size) == (levels, patch)
    assert large


def test_a_restart_keeps_the_plan_and_another_request_is_refused(
    tool: ModuleType,
    options: Namespace,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    done: list[Any] = []
    stand_in(tool, monkeypatch, done)
    assert tool.main(arguments(options)) == 0
    printed = capsys.readouterr().out
    assert "images seen as plain diffusion" in printed
    before = json.loads((options.output / "plan.json").read_text())
    monkeypatch.setattr(tool, "measure_rates", lambda *_: pytest.fail("measured again"))
    first = list(done)
    assert tool.main(arguments(options)) == 0
    assert done == first + first  # the same commands, which find their work done
    after = json.loads((options.output / "plan.json").read_text())
    assert after["plan"] == before["plan"]
    assert tool.main([*arguments(options), "--hours", "2"]) == 2
    assert_names(capsys.readouterr().err, "plan.json", "hours")


def test_rates_are_measured_and_the_stages_run_to_a_report(
    tool: ModuleType,
    options: Namespace,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Everything for real but the sizes, which are the least."""
    rates = importlib.import_module("experiment_rates")
    planning = importlib.import_module("experiment_plan")
    commands = importlib.import_module("experiment_stages")
    compare = importlib.import_module("compare")

    def tiny(_: Namespace, autoencoder: Any) -> TrainConfig:
        from tiny_runs import PLAIN, TWO_DRAWS, generator_config, phase

        store = options.output / "store"
        return generator_config(store, "unused", phase(8, PLAIN), phase(8, TWO_DRAWS))

    monkeypatch.setattr(tool, "generator_config", tiny)
    monkeypatch.setattr(commands, "EVALUATIONS", (1, 4))
    monkeypatch.setattr(rates, "WIDTHS", ((16, 0), (32, 10**12)))
    monkeypatch.setattr(rates, "OF_SPACE", {"pyramid-v2": ("frechet",)})
    monkeypatch.setattr(rates, "start_of_a_command", lambda: 0.0)
    monkeypatch.setattr(planning, "ENCODING_SHARE", 0.0)  # so few of the images as can be
    monkeypatch.setattr(planning, "FEWEST_BATCHES", 2)
    monkeypatch.setattr(planning, "FEWEST_SAMPLES", 12)
    monkeypatch.setattr(planning, "MOST_SAMPLES", 12)
    monkeypatch.setattr(planning, "widest", lambda found: (found[0][0], 0))

    def run_here(stages: Any, _: float | None) -> None:
        for stage in stages:
            command = list(stage.command)
            here = main if command[1] == "-m" else compare.main
            assert here(command[3 if command[1] == "-m" else 2 :]) == 0

    monkeypatch.setattr(tool, "run_stages", run_here)
    options.hours, options.images = 1.0, "portraits:70"
    assert tool.main(arguments(options)) == 0
    state = json.loads((options.output / "plan.json").read_text())
    encoded = LatentStore(options.output / "store")
    assert len(encoded) == state["plan"]["images"] == planning.FEWEST_IMAGES
    measured = state["rates"]
    assert all(measured[name] > 0 for name in ("read", "encode", "decode", "evaluation"))
    assert [network["channels"] for network in measured["networks"]] == [16]
    assert set(state["taken"]) == {*state["first"]} >= {"measurement", "DDM", "comparison"}
    text = (options.output / "report.md").read_text()
    assert "by FID" in text  # and why not
    assert text in capsys.readouterr().out
    assert "| DDM, unipc | 32 |" in text
    assert "| plain, unipc/uniform | 32 |" in text
    assert "| plain, unipc/power | 32 |" in text
    assert "--steps 4 --output samples --decode" in text


def test_it_stops_in_time_with_what_a_stage_has_saved(
    tool: ModuleType,
    options: Namespace,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stages = importlib.import_module("stages")
    stand_in(tool, monkeypatch, [])
    assert tool.main(arguments(options)) == 0  # the plan
    monkeypatch.setattr(tool, "run_stages", stages.run_stages)
    saved = options.output / "saved"
    script = f"trap 'touch {saved}; exit 143' TERM; while true; do sleep 0.1; done"
    stage = stages.Stage("patience", ["sh", "-c", script])
    monkeypatch.setattr(tool, "stage_of", lambda *_: stage)
    code = tool.main(arguments(options, "--minutes", "0.05"))
    assert code == 128 + signal.SIGTERM
    assert saved.exists()
    assert "in the stage patience; run the same command again" in capsys.readouterr().err
    taken = json.loads((options.output / "plan.json").read_text())["taken"]
    assert taken["latents"] > 1


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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_tool_stops_its_stage_too(tmp_path: Path, number: int) -> None:
    """Else a training goes on alone, and the tool's next call begins it a second time."""
    saved, begun = tmp_path / "saved", tmp_path / "begun"
    body = f"trap 'touch {saved}; exit 143' TERM; touch {begun}; while true; do sleep 0.1; done"
    code = (
        "from command_line import exit_code; from stages import Stage, run_stages\n"
        f"work = lambda: run_stages([Stage('patience', ['sh', '-c', {body!r}])])\n"
        "raise SystemExit(exit_code(work))"
    )
    path = os.pathsep.join([str(TOOLS), *sys.path])
    tool = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        stderr=subprocess.PIPE,
        text=True,
    )
    while not begun.exists():
        assert tool.poll() is None
        time.sleep(0.1)
    tool.send_signal(number)
    assert "in the stage patience; run the same command again" in tool.communicate(timeout=60)[1]
    assert tool.returncode == 128 + number
    assert saved.exists()


def test_a_stage_that_fails_is_named(
    tool: ModuleType,
    options: Namespace,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stages = importlib.import_module("stages")
    stand_in(tool, monkeypatch, [])
    monkeypatch.setattr(tool, "run_stages", stages.run_stages)
    stage = stages.Stage("latents", [sys.executable, "-c", "raise SystemExit(2)"])
    monkeypatch.setattr(tool, "stage_of", lambda *_: stage)
    assert tool.main(arguments(options)) == 1
    assert "The stage latents ended with exit code 2" in capsys.readouterr().err


def test_no_hours_are_refused(tool: ModuleType, options: Namespace) -> None:
    options.hours = 0
    assert tool.main(arguments(options)) == 2
