"""The paper's tables: equal images, equal seconds, one network, and nothing done twice."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from messages import assert_names
from tiny_runs import ONE_LEVEL, PLAIN, TWO_DRAWS, generator_config, phase

from latentddm.cli import main
from latentddm.engine.config import to_yaml
from latentddm.engine.task import LoopConfig
from latentddm.training.config import TrainConfig

TOOLS = Path(__file__).parents[2] / "tools"
COMPARE = (
    "--features latents --reference-images 40 --churn 0 --safety 0.02 --grids uniform "
    "--xi-scales 1 --noise-scales 1"
)


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(TOOLS))
    return importlib.import_module("paper")


@pytest.fixture
def rates(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten milliseconds for a plain image, 15 for any other, 30 for a student's; quick samples."""

    def measured(config: Any, objectives: Any, students: int, judgement: Any) -> Any:
        training = {name: 0.01 if name == "plain" else 0.015 for name in objectives}
        return importlib.import_module("paper_plan").Rates(
            training=training,
            student=0.03,
            evaluation=1e-5,
            describe=1e-5,
            distance=1e-5,
            reference=0.01,
            start=0.0,
        )

    monkeypatch.setattr(tool, "measure_rates", measured)


@pytest.fixture
def config(tiny_store: Path) -> TrainConfig:
    loop = LoopConfig(batch_size=8, log_every=8, preview_every=800, checkpoint_every=800)
    phases = (phase(4000, PLAIN), phase(4000, TWO_DRAWS))
    return generator_config(tiny_store, "unused", *phases, loop=loop)


def arguments(config: TrainConfig, output: Path, hours: float, *more: str) -> list[str]:
    path = output.with_suffix(".yaml")
    path.write_text(to_yaml(config))
    request = [str(path), "--hours", str(hours), "--output", str(output), "--evaluations", "1,2"]
    return [*request, "--compare", COMPARE, *more]


def run_here(done: list[str]) -> Callable[..., None]:
    """The stages in this process."""
    compare = importlib.import_module("compare")

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


@pytest.mark.usefixtures("rates")
@pytest.mark.slow
def test_every_method_stands_in_a_table_by_images_and_in_one_by_seconds(
    tool: ModuleType, config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    stages = importlib.import_module("paper_stages")
    spent = {"plain": 1.0, "DDM": 1.5, "student-of-2": 2.0}
    monkeypatch.setattr(tool, "run_stages", run_here(done))
    monkeypatch.setattr(stages.Work, "_seconds", lambda self, name, images: spent.get(name, 1.25))
    # Of 33 images: plain, four others, a student on half of them; five for a student's 25 ms.
    hours = (33 * (0.01 + 4 * 0.015 + 0.015 + 5 * 0.025) + 0.15) / 3600
    few = ["--seeds", "1", "--student-steps", "2", "--evaluations", "2"]
    request = arguments(config, tmp_path / "paper", hours, *few)
    assert tool.main(request) == 0
    plan = json.loads((tmp_path / "paper" / "plan.json").read_text())
    images = plan["plan"]["images"]
    trained = ["plain", "DDM", "shortcut", "mean-flow", "inductive", "student-of-2"]
    tables = [*trained, "comparison-images", *trained, "comparison-seconds"]
    assert [name.split(",")[0] for name in done] == tables
    assert images == 32
    sizes = plan["seconds"]
    assert sizes["student-of-2"] == images // 2  # the slowest: its training stands in both
    assert sizes["plain"] == 2 * images
    assert sizes["shortcut"] == pytest.approx(1.6 * images, abs=4)  # a batch is 8

    reports = {
        by: json.loads((tmp_path / "paper" / f"comparison-{by}" / "results.json").read_text())
        for by in ("images", "seconds")
    }
    samplers = ["plain", "plain, dpmsolver++", "plain, sde-dpmsolver++", "plain, unipc"]
    samplers += ["DDM", "DDM, ddim/power", "DDM, dpmsolver++", "DDM, unipc"]
    for by, report in reports.items():
        series = {method["series"]: method for method in report["methods"]}
        assert list(series) == [*samplers, *trained[2:]]
        assert all(method["training_seconds"] > 0 for method in series.values())
        assert series["plain"]["images"] == (images if by == "images" else 2 * images)
        assert series["student-of-2"]["images"] == images + images // 2
        assert len(report["best"]) == 11
        assert report["protocol"]["samples"] == plan["plan"]["samples"]
    table = (tmp_path / "paper" / "table.md").read_text()
    assert table.index("## Equal images") < table.index("## Equal seconds")
    assert f"| student-of-2 | {images + images // 2} |" in table
    assert "published" not in table

    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert tool.main(request) == 0  # all of it is there
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert (tmp_path / "paper" / "table.md").read_text() == table


def test_methods_differ_in_the_objective_of_their_second_share_alone(
    tool: ModuleType, config: TrainConfig, tmp_path: Path
) -> None:
    methods = importlib.import_module("paper_methods")
    of = {
        name: methods.method_config(config, objective, 800, tmp_path)
        for name, objective in methods.methods(config).items()
    }
    assert len({each.performance for each in of.values()}) == 1  # seconds are comparable
    assert of["DDM"].performance.cuda_graphs is False
    (only,) = of.pop("plain").phases
    assert (only.images, only.objective) == (800, PLAIN)
    for name, each in of.items():
        first, second = each.phases
        assert (first.images, second.images) == (400, 400)
        assert (first.objective, second.optimizer) == (PLAIN, first.optimizer)
        needs = {"times": 1 if name == "DDM" else 2}
        needs |= {"time_frequency": 32.0} if name == "mean-flow" else {}  # its derivative by t
        assert each.network == replace(ONE_LEVEL, **needs)
    assert of["DDM"].phases[1].objective == TWO_DRAWS


def test_draws_and_settings_of_rivals_come_from_the_command_line(
    tool: ModuleType, config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    methods = importlib.import_module("paper_methods")
    found = methods.methods(config, (2, 4), ["inductive.decrement=15", "mean-flow.time_mean=-2"])
    assert [name for name in found if name.startswith("DDM")] == ["DDM-of-2", "DDM-of-4"]
    assert found["DDM-of-4"] == replace(TWO_DRAWS, draws=4)
    assert found["inductive"].decrement == 15
    assert (found["mean-flow"].time_mean, found["mean-flow"].improved) == (-2, True)
    for wrong, named in (
        (["--rivals", "shortcut.decrement=3"], "decrement"),
        (["--rivals", "consistency.x=1"], "mean-flow, inductive"),
        (["--draws", "1"], "--draws 1"),
    ):
        assert tool.main(arguments(config, tmp_path / "no", 1, *wrong)) == 2
        assert named in capsys.readouterr().err


def test_each_method_has_as_many_settings_tried_if_it_has_them(
    tool: ModuleType, config: TrainConfig
) -> None:
    methods, plan = (importlib.import_module(f"paper_{name}") for name in ("methods", "plan"))
    compare = importlib.import_module("compare")
    asked = ["--method", "x", "--output", "x", "--evaluations", "1,4", *tool.SWEEP]
    sweep = compare.sweep_of(compare.make_parser().parse_args(asked))
    rows = methods.rows(methods.methods(config), (4,), 0, 1)
    tried = replace(sweep, tries=max(plan.TRIES))
    cells = compare.plan_cells(rows, tried, 1)
    count = {
        (name, steps): sum(
            (cell.method.name, cell.sampling.steps) == (name, steps) for cell in cells
        )
        for name in ("plain", "DDM", "mean-flow", "inductive", "student-of-4", "shortcut")
        for steps in (1, 4)
    }
    shortcut = count.pop(("shortcut", 4))
    assert shortcut == 4  # the scales of its noise are all it has
    assert {number for (_, steps), number in count.items() if steps == 4} == {max(plan.TRIES)}
    exact = {"churn": 0.0, "safety": 0.0, "xi_scale": 1.0, "noise_scale": 1.0}
    for row in rows:  # whose exact sampler is among them
        own = [cell.sampling for cell in cells if cell.method == row and cell.sampling.steps == 4]
        assert any(all(getattr(each, key) == exact[key] for key in exact) for each in own)


def test_a_student_has_the_seed_and_an_optimizer_of_its_own(
    tool: ModuleType, config: TrainConfig, tmp_path: Path
) -> None:
    methods = importlib.import_module("paper_methods")
    assert methods.second_share(config, 800) == 400
    seeded, teacher = replace(config, seed=5), (tmp_path / "plain", 800)
    student = methods.student_config(seeded, 2, 400, teacher, tmp_path / "student")
    assert (student.steps, student.seed, student.teacher_images) == (2, 5, 800)
    assert (student.loop.images, student.loop.batch_size) == (400, 8)
    assert student.optimizer.learning_rate == 1e-4
    assert student.optimizer.warmup_images == 40
    assert student.ema == config.ema
    changed = ["optimizer.learning_rate=3e-4"]
    student = methods.student_config(config, 2, 400, teacher, tmp_path / "student", changed)
    assert student.optimizer.learning_rate == 3e-4


@pytest.mark.usefixtures("rates")
def test_a_plan_fills_the_hours_and_stays(
    tool: ModuleType,
    config: TrainConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stages = importlib.import_module("paper_stages")
    monkeypatch.setattr(tool, "run_stages", lambda stages: None)
    monkeypatch.setattr(tool, "write_tables", lambda output, figures: None)
    monkeypatch.setattr(stages.Work, "sizes_of_equal_seconds", lambda self, sizes: sizes)
    request = arguments(config, tmp_path / "paper", 2)
    assert tool.main([*request, "--seeds", "2"]) == 0
    kept = json.loads((tmp_path / "paper" / "plan.json").read_text())
    trainings, added, comparison = kept["plan"]["hours"]
    assert 1.9 < trainings + added + 2 * comparison <= 2
    images = kept["plan"]["images"]
    # plain, four others and four students on half the images; all for a student's 25 ms
    assert trainings == pytest.approx(2 * images * (0.01 + 4 * 0.015 + 4 * 0.015) / 3600)
    assert added == pytest.approx(2 * images * 5 * 0.025 / 3600)
    assert tool.main(request) == 2
    assert "seeds" in capsys.readouterr().err
    assert tool.main([*request, "--seeds", "2", "seed=7"]) == 2
    assert "config.seed" in capsys.readouterr().err
    assert tool.main(arguments(config, tmp_path / "short", 1e-5)) == 2
    assert "--hours" in capsys.readouterr().err
    one = replace(config, phases=config.phases[:1])
    assert tool.main(arguments(one, tmp_path / "one", 1)) == 2
    assert "plain and ddm" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ("--features pyramid-v2", "--reference"),
        ("--features latents --metrics fid", "fid"),
        ("--features latents --churn 3", "--churn"),
        ("--features latents --xi-scales 0.5,-1", "--xi-scales"),
        ("--features pyramid-v2 --reference nowhere", "nowhere"),
        ("--features latents --tries 4", "--tries, which the hours decide"),
        ("--features latents --samples=10000", "--samples, which the hours decide"),
    ],
)
def test_a_wrong_comparison_is_refused_before_anything_is_trained(
    tool: ModuleType,
    config: TrainConfig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    asked: str,
    named: str,
) -> None:
    request = arguments(config, tmp_path / "paper", 5, "--compare", asked)
    assert tool.main(request) == 2
    assert named in capsys.readouterr().err
    assert not (tmp_path / "paper").exists()


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        (["--student-steps", "4,4"], "--student-steps has a number twice"),
        (["--distill", "loop.batch_size=32"], "--distill loop.batch_size=32"),
        (["--distill", "optimizer.rate=1"], "optimizer.rate"),
        (["--student-steps", "none", "--distill", "optimizer.beta2=0.9"], "leave one of them out"),
    ],
)
def test_wrong_students_are_refused_before_anything_is_trained(
    tool: ModuleType,
    config: TrainConfig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    asked: list[str],
    named: str,
) -> None:
    assert tool.main([*arguments(config, tmp_path / "paper", 5), *asked]) == 2
    assert named in capsys.readouterr().err
    assert not (tmp_path / "paper").exists()


def test_a_start_is_refused_before_anything_is_trained(
    tool: ModuleType, config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A rival's network, which reads a second time, cannot have its weights."""
    output = tmp_path / "paper"
    assert tool.main([*arguments(config, output, 5), "start=runs/first"]) == 2
    assert_names(capsys.readouterr().err, "start is runs/first", "leave it out")
    assert not output.exists()


def test_an_output_that_cannot_be_named_to_compare_is_refused(
    tool: ModuleType, config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        tool.main(arguments(config, tmp_path / "a@b", 5))
    assert stop.value.code == 2
    assert "has one of @ : ," in capsys.readouterr().err


def test_the_rates_are_measured_on_the_store_and_leave_nothing_behind(
    tool: ModuleType, config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = importlib.import_module("paper_rates")
    monkeypatch.setattr(rates, "SECONDS", 0.01)
    monkeypatch.setattr(rates, "start_of_a_command", lambda: 1.0)
    monkeypatch.chdir(tmp_path)
    reference = importlib.import_module("compare_reference")
    judgement = reference.Judgement(features=("latents",), store=config.store)
    objectives = importlib.import_module("paper_methods").methods(config)
    found = rates.measure_rates(config, objectives, 1, judgement)
    assert set(found.training) == set(objectives)
    seconds = (*found.training.values(), found.student, found.evaluation, found.describe)
    assert all(1e-7 < each < 1 for each in seconds)
    assert list(tmp_path.iterdir()) == []


def test_equal_seconds_are_those_of_the_slowest(tool: ModuleType) -> None:
    plan = importlib.import_module("paper_plan")
    images = {"plain": 800, "DDM": 800, "student-of-1": 200}
    spent = {"plain": 100.0, "DDM": 200.0, "student-of-1": 150.0}
    taught = {"student-of-1": 100.0}
    sizes = plan.images_of_equal_seconds(images, spent, taught, 8)
    # the student has 100 s beside its teacher's, of which it took 50
    assert sizes == {"plain": 1600, "DDM": 800, "student-of-1": 400}


def finding(method: str, evaluations: int, value: float, spread: float | None) -> dict[str, object]:
    return {
        "method": f"{method} at 32 images",
        "evaluations": evaluations,
        "values": {"x/fid": value},
        "spread": {"x/fid": spread},
    }


def test_the_verdict_is_level_within_the_deviations_and_names_who_is_ahead_beyond(
    tool: ModuleType,
) -> None:
    table = importlib.import_module("paper_table")
    best = [
        finding("plain", 1, 90.0, None),
        finding("plain, unipc", 1, 80.0, None),
        finding("DDM", 1, 30.0, 2.0),
        finding("mean-flow", 1, 20.0, 1.0),
        finding("shortcut", 1, 25.0, 1.0),
        finding("student-of-4", 1, 60.0, None),
        finding("DDM-of-2", 2, 21.0, 1.0),
        finding("mean-flow", 2, 20.0, 1.0),
        finding("DDM, dpmsolver++", 4, 10.0, None),
        finding("plain", 4, 11.0, None),
    ]
    text = table.verdict_table({"best_by": "x/fid", "best": best})
    one = "80 (plain, unipc) | 30 ± 2 (DDM) | 60 (student-of-4) | 20 ± 1 (mean-flow) | 1.50 |"
    assert f"| 1 | mean-flow | {one}" in text
    assert "| 2 | level |  | 21 ± 1 (DDM-of-2) |  | 20 ± 1 (mean-flow) | 1.05 |" in text
    four = "11 (plain) | 10 (DDM, dpmsolver++) |  |  | 0.91 |"
    assert f"| 4 | DDM, dpmsolver++ | {four}" in text  # of one seed: no deviation is known


def test_the_effort_of_a_method_is_that_of_its_rows(tool: ModuleType) -> None:
    table = importlib.import_module("paper_table")
    settings = [finding("DDM", 1, 1, None), finding("DDM, ddim/power", 1, 1, None)]
    settings += [finding("DDM", 2, 1, None), finding("plain", 1, 1, None)]
    methods = [{"series": "DDM, ddim/power", "runs": [1, 2]}, {"series": "plain", "runs": [1, 2]}]
    text = table.effort_table({"settings": settings, "methods": methods})
    assert "| DDM | 2 | 2 | 1 |\n| plain | 2 | 1 |  |" in text


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
    assert "| MeanFlow | CIFAR-10, 32 px | 2.92 |  |  | arXiv" in text
    assert "much larger networks" in text
    request = ["x.yaml", "--hours", "1", "--output", str(tmp_path), "--published", "imagenet"]
    assert tool.main(request) == 2
    assert "cifar10, celeba64" in capsys.readouterr().err
