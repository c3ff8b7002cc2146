"""The paper's table: equal images, one network, every method in it, and nothing done twice."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from tiny_runs import ONE_LEVEL, PLAIN, TWO_DRAWS, generator_config, phase

from latentddm.cli import main
from latentddm.engine.config import to_yaml
from latentddm.engine.task import LoopConfig
from latentddm.training.config import TrainConfig

TOOLS = Path(__file__).parents[2] / "tools"
# seconds of all methods at the speeds below: plain, four in two shares, a student
PER_IMAGE = 1 / 100 + 4 * (0.5 / 100 + 0.5 / 50) + 0.5 * 3 / 100


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(TOOLS))
    return importlib.import_module("paper")


@pytest.fixture
def speeds(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """100 images/s of plain diffusion, 50 of all else."""

    def measured(config: TrainConfig) -> Iterator[SimpleNamespace]:
        for one in config.phases:
            yield SimpleNamespace(images_per_second=100 if one.objective == PLAIN else 50)

    monkeypatch.setattr(tool, "measure_phases", measured)


@pytest.fixture
def config(tiny_store: Path, tmp_path: Path) -> TrainConfig:
    loop = LoopConfig(batch_size=8, log_every=8, preview_every=800, checkpoint_every=800)
    phases = (phase(4000, PLAIN), phase(4000, TWO_DRAWS))
    return generator_config(tiny_store, "unused", *phases, loop=loop)


def arguments(config: TrainConfig, output: Path, images: int) -> list[str]:
    path = output.with_suffix(".yaml")
    path.write_text(to_yaml(config))
    hours = (images + 1) * PER_IMAGE / 3600
    compare = "--features latents --samples 12 --reference-images 20 --churn 0 --safety 0.02"
    options = ["--evaluations", "1,2", "--compare", f"{compare} --grids uniform"]
    return [str(path), "--hours", str(hours), "--output", str(output), *options]


def run_here(compare: ModuleType, done: list[str]) -> Callable[..., None]:
    """The stages in this process."""

    def run(stages: list[SimpleNamespace]) -> None:
        for stage in stages:
            arguments = list(stage.command)
            done.append(stage.name)
            if arguments[1] == "-m":
                assert arguments[2] == "latentddm"
                assert main(arguments[3:]) == 0
            else:
                assert Path(arguments[1]) == TOOLS / "compare.py"
                assert compare.main(arguments[2:]) == 0

    return run


@pytest.mark.usefixtures("speeds")
def test_every_method_is_trained_on_as_many_images_and_stands_in_the_table(
    tool: ModuleType, config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    monkeypatch.setattr(tool, "run_stages", run_here(importlib.import_module("compare"), done))
    request = arguments(config, tmp_path / "paper", images=32)
    assert tool.main(request) == 0
    trained = ["plain", "DDM", "shortcut", "mean-flow", "inductive", "student-of-4"]
    assert done == [*(f"{name}, seed 0" for name in trained), "comparison"]
    comparison = tmp_path / "paper" / "comparison"
    report = json.loads((comparison / "results.json").read_text())
    student, others = report["methods"][-1], report["methods"][:-1]
    assert {method["images"] for method in others} == {32}
    assert student["images"] == 32 + 16  # its teacher's, and the second share
    plain = next(method for method in others if method["series"] == "plain")
    assert student["training_seconds"] > plain["training_seconds"] > 0
    assert all(method["training_seconds"] > 0 for method in others)
    samplers = ["plain", "plain, dpmsolver++", "plain, unipc", "DDM", "DDM, dpmsolver++"]
    series = [method["series"] for method in report["methods"]]
    assert series == [*samplers, "shortcut", "mean-flow", "inductive", "student-of-4"]
    assert len(report["best"]) == 9 * 2
    table = (tmp_path / "paper" / "table.md").read_text()
    assert all(f"| {name} | 32 |" in table for name in series[:-1])
    assert "| student-of-4 | 48 |" in table
    assert "published" not in table

    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert tool.main(request) == 0  # all of it is there
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert (tmp_path / "paper" / "table.md").read_text() == table


@pytest.mark.usefixtures("speeds")
def test_methods_differ_in_the_objective_of_their_second_share_alone(
    tool: ModuleType, config: TrainConfig, tmp_path: Path
) -> None:
    of = {
        name: tool.config_of(config, objective, 800, tmp_path, 0)
        for name, objective in tool.methods(config).items()
    }
    (only,) = of.pop("plain").phases
    assert (only.images, only.objective) == (800, PLAIN)
    for name, each in of.items():
        first, second = each.phases
        assert (first.images, second.images) == (400, 400)
        assert (first.objective, second.optimizer) == (PLAIN, first.optimizer)
        assert each.network == replace(ONE_LEVEL, times=1 if name == "DDM" else 2)
    assert of["DDM"].phases[1].objective == TWO_DRAWS
    labelled = replace(config, network=replace(ONE_LEVEL, classes=3))
    assert "inductive" not in tool.methods(labelled)  # which would mix labels


def test_a_student_has_the_second_share_the_seed_and_an_optimizer_of_its_own(
    tool: ModuleType, config: TrainConfig, tmp_path: Path
) -> None:
    student = tool.student_of(
        replace(config, seed=5), 2, 800, tmp_path / "plain", tmp_path / "student"
    )
    assert (student.steps, student.seed, student.teacher_images) == (2, 5, 800)
    assert (student.loop.images, student.loop.batch_size) == (400, 8)
    assert student.optimizer.learning_rate == 1e-4
    assert student.optimizer.warmup_images == 40
    assert student.ema == config.ema
    changed = ["optimizer.learning_rate=3e-4"]
    student = tool.student_of(config, 2, 800, tmp_path, tmp_path / "student", changed)
    assert student.optimizer.learning_rate == 3e-4


@pytest.mark.usefixtures("speeds")
def test_a_plan_fills_the_hours_and_stays(
    tool: ModuleType,
    config: TrainConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(tool, "run_stages", lambda stages: None)
    monkeypatch.setattr(tool, "write_table", lambda output, figures: None)
    request = arguments(config, tmp_path / "paper", images=4000)
    assert tool.main([*request, "--seeds", "2"]) == 0
    assert "2,000 images" in capsys.readouterr().out
    assert tool.main(request) == 2
    assert "seeds" in capsys.readouterr().err
    assert tool.main([*request, "--seeds", "2", "seed=7"]) == 2
    assert "config.seed" in capsys.readouterr().err
    short = arguments(config, tmp_path / "short", images=8)
    assert tool.main(short) == 2
    assert "--hours" in capsys.readouterr().err
    one = replace(config, phases=config.phases[:1])
    assert tool.main(arguments(one, tmp_path / "one", images=800)) == 2
    assert "plain and ddm" in capsys.readouterr().err


def test_the_speed_of_a_method_is_that_of_its_phases(
    tool: ModuleType, config: TrainConfig, tmp_path: Path
) -> None:
    rival = tool.config_of(config, tool.methods(config)["shortcut"], 800, tmp_path / "run", 0)
    whole = tool._seconds_per_image(rival)
    assert 1e-6 < whole < 1
    assert not (tmp_path / "run").exists()


def finding(method: str, evaluations: int, value: float, spread: float | None) -> dict[str, object]:
    return {
        "method": f"{method} at 32 images",
        "evaluations": evaluations,
        "values": {"x/fid": value},
        "spread": {"x/fid": spread},
    }


def test_the_verdict_names_the_best_of_each_kind_and_the_ratio(tool: ModuleType) -> None:
    table = importlib.import_module("paper_table")
    best = [
        finding("plain", 1, 90.0, None),
        finding("plain, unipc", 1, 80.0, None),
        finding("DDM", 1, 30.0, 2.0),
        finding("mean-flow", 1, 20.0, 1.0),
        finding("shortcut", 1, 25.0, 1.0),
        finding("student-of-4", 1, 60.0, None),
        finding("DDM, dpmsolver++", 4, 10.0, None),
        finding("plain", 4, 40.0, None),
    ]
    text = table.verdict_table({"best_by": "x/fid", "best": best})
    one = "80 (plain, unipc) | 30 ± 2 (DDM) | 60 (student-of-4) | 20 ± 1 (mean-flow) | 1.50 |"
    assert f"| 1 | mean-flow | {one}" in text
    assert "| 4 | DDM, dpmsolver++ | 40 (plain) | 10 (DDM, dpmsolver++) |  |  | 0.25 |" in text


def test_published_figures_stand_apart_with_their_source(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = importlib.import_module("paper_table")
    content = json.loads((TOOLS / "published.json").read_text())
    for name in content["data"]:
        rows = table.published_figures(name)
        assert rows
        assert all(value > 0 for row in rows for value in row.fid.values())
        assert all("arXiv" in row.source for row in rows)
    text = table.published_table(table.published_figures("cifar10"), [1, 2, 4])
    assert "| DDM | CIFAR-10, 32 px, by class |  | 29.33 | 4.67 | the authors' replies" in text
    assert "much larger networks" in text
    request = ["x.yaml", "--hours", "1", "--output", str(tmp_path), "--published", "imagenet"]
    assert tool.main(request) == 2
    assert "cifar10, celeba64" in capsys.readouterr().err
