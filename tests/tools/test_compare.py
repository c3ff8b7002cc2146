"""The comparison tool: nothing is done twice, only likes are compared, the best setting counts."""

from __future__ import annotations

import importlib
import json
import re
import shutil
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from messages import assert_names

from autoencoder.image_io import save_image
from latentddm.engine.errors import UserError
from latentddm.engine.run import Effort, RunFolder
from latentddm.inference.best_settings import best_settings
from latentddm.inference.sampler import SamplerConfig
from latentddm.inference.settings import SamplingConfig
from latentddm.inference.xi_scale import ScaleRange

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture(scope="module")
def runs(
    encode_tiny: Callable[[str, Path, Path], Path],
    tiny_autoencoder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A store of tiny portraits, a DDM with two checkpoints and a plain diffusion model."""
    from tiny_runs import PLAIN, TWO_DRAWS, generator_config, phase

    from latentddm.engine.task import LoopConfig
    from latentddm.training.generator import train

    folder = tmp_path_factory.mktemp("compare")
    store = encode_tiny("portraits:24", tiny_autoencoder, folder / "store")
    loop = LoopConfig(batch_size=8, log_every=8, checkpoint_every=8)
    for name, objective in (("ddm", TWO_DRAWS), ("plain", PLAIN)):
        train(generator_config(store, folder / name, phase(16, objective), loop=loop))
    return folder


@pytest.fixture
def compare(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(TOOLS))
    return importlib.import_module("compare")


def arguments(runs: Path, output: Path, *more: str) -> list[str]:
    return [
        *("--method", f"DDM={runs / 'ddm'}@all", "--method", f"plain={runs / 'plain'}:ddim,heun"),
        *("--features", "latents", "--samples", "12", "--reference-images", "20"),
        *("--evaluations", "1,3", "--churn", "0,1", "--safety", "0.02"),
        *("--output", str(output), *more),
    ]


def test_best_settings_and_all_settings_are_written_and_finished_cells_kept(
    runs: Path, tmp_path: Path, compare: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert compare.main(arguments(runs, output, "--keep-best")) == 0
    report = json.loads((output / "results.json").read_text())
    # DDIM: 1 cell at one evaluation, 2 churns at three; Heun: 1 and 3 grids.
    assert len(report["settings"]) == 3 * (1 + 2) + (1 + 3)
    assert len(report["best"]) == 4 * 2
    metric = report["best_by"]
    assert metric == "latents/frechet"
    for best in report["best"]:
        same = [
            each["values"][metric]
            for each in report["settings"]
            if (each["method"], each["evaluations"]) == (best["method"], best["evaluations"])
        ]
        assert best["values"][metric] == min(same)
    assert {m["images"] for m in report["methods"]} == {8, 16}
    assert all(m["training_seconds"] > 0 for m in report["methods"])
    table = (output / "table.md").read_text()
    assert "| plain, heun | 16 |" in table
    assert table in capsys.readouterr().out
    assert (output / "curves.png").is_file()
    assert (output / "trend.png").is_file()
    assert len(list((output / "grids").glob("*.png"))) == 4

    best_of_plain = [
        best for best in report["best"] if re.match(r"plain(, heun)? at 16 ", best["method"])
    ]
    for steps, chosen in best_settings(runs / "plain", 0).items():
        at = [best for best in best_of_plain if best["evaluations"] == steps]
        winner = min(at, key=lambda best: best["values"][metric])
        assert (chosen.solver == "heun") == ("heun" in winner["method"])
        assert chosen.churn == winner["setting"]["churn"]
        assert (chosen.grid or "uniform") == winner["setting"]["grid"]
    assert set(best_settings(runs / "ddm", 0)) == {best["evaluations"] for best in best_of_plain}

    cells = sorted((output / "cells").glob("*.json"))
    assert len(cells) == 13
    entry = json.loads(cells[0].read_text())
    protocol = entry["results"]["latents/energy"]["protocol"]
    assert (protocol["n"], protocol["n_reference"]) == (12, 20)
    before = {path: path.stat().st_mtime_ns for path in cells}
    cells[0].unlink()
    assert compare.main(arguments(runs, output)) == 0
    after = {path: path.stat().st_mtime_ns for path in sorted((output / "cells").glob("*.json"))}
    assert set(after) == set(before)
    assert [path for path in cells if after[path] != before[path]] == cells[:1]
    again = json.loads(cells[0].read_text())
    assert again["results"] == entry["results"]  # the same numbers to the last digit


def test_a_flow_map_is_swept_over_its_times_alone(runs: Path, compare: ModuleType) -> None:
    plan = importlib.import_module("compare_plan")
    (plain,) = plan.parse_methods([f"rival={runs / 'plain'}"])
    sweep = plan.Sweep(evaluations=(1, 4), safety=(0.0, 0.05), grids=("uniform", "power"))

    def swept(learnt: str) -> list[tuple[object, ...]]:
        trained = tuple(replace(run, flow_map=learnt) for run in plain.runs)
        cells = plan.plan_cells([replace(plain, runs=trained)], sweep, batch_size=4)
        of = [cell.sampling for cell in cells]
        assert all((each.churn, each.safety, each.xi_scale) == (0, 0, 1) for each in of)
        return [(each.steps, each.grid) for each in of]

    assert swept("dyadic") == [(1, None), (4, None)]
    assert swept("free") == [(1, "uniform"), (4, "uniform"), (4, "power")]


def test_rivals_stand_in_the_table_at_every_number_of_evaluations(
    runs: Path, tmp_path: Path, compare: ModuleType
) -> None:
    from tiny_runs import ONE_LEVEL, generator_config, phase

    from latentddm.training.generator import train
    from latentddm.training.rivals import RIVALS

    methods = []
    for name, kind in RIVALS.items():
        network = replace(ONE_LEVEL, times=2, time_frequency=32.0)  # as mean flows need
        train(generator_config(runs / "store", tmp_path / name, phase(8, kind()), network=network))
        methods += ["--method", f"{name}={tmp_path / name}"]
    request = [*methods, "--features", "latents", "--samples", "12", "--reference-images", "20"]
    request += ["--evaluations", "1,2,4,8", "--grids", "uniform,power"]
    assert compare.main([*request, "--output", str(tmp_path / "out")]) == 0
    report = json.loads((tmp_path / "out" / "results.json").read_text())
    found = [(best["method"].split(" ")[0], best["evaluations"]) for best in report["best"]]
    assert found == [(name, count) for name in RIVALS for count in (1, 2, 4, 8)]
    spent = {each["setting"]["network_evaluations"] for each in report["settings"]}
    assert spent == {1, 2, 4, 8}
    with_solver = f"x={tmp_path / 'shortcut'}:unipc"
    refused = ["--method", with_solver, "--features", "latents", "--output", str(tmp_path / "no")]
    assert compare.main(refused) == 2


def test_other_weights_or_another_protocol_are_other_cells(
    runs: Path, tmp_path: Path, compare: ModuleType
) -> None:
    plan = importlib.import_module("compare_plan")
    reference = importlib.import_module("compare_reference")
    methods = plan.parse_methods([f"DDM={runs / 'ddm'}@all"])
    judgement = reference.Judgement(features=("latents",), samples=12)
    cells = plan.plan_cells(methods, plan.Sweep(evaluations=(2,), churn=(0.0,)), batch_size=4)
    keys = {cell.key(judgement.to_plain()) for cell in cells}
    assert len(keys) == len(cells) == 2 * 3
    other = reference.Judgement(features=("latents",), samples=13)
    assert not keys & {cell.key(other.to_plain()) for cell in cells}
    # The size of a batch changes nothing, so it is not part of the key.
    larger = plan.plan_cells(methods, plan.Sweep(evaluations=(2,), churn=(0.0,)), batch_size=9)
    assert keys == {cell.key(judgement.to_plain()) for cell in larger}


def test_only_the_grids_asked_for_are_tried(runs: Path, compare: ModuleType) -> None:
    plan = importlib.import_module("compare_plan")
    methods = plan.parse_methods([f"plain={runs / 'plain'}:ddim,heun"])
    sweep = plan.Sweep(evaluations=(3,), churn=(0.0,), safety=(0.02,), grids=("power",))
    cells = plan.plan_cells(methods, sweep, batch_size=4)
    assert [cell.sampling.grid for cell in cells] == [None, "power"]  # DDIM has its own
    several = replace(sweep, grids=("uniform", "power"), powers=(0.5, 0.4))
    spread = [(c.sampling.grid, c.sampling.power) for c in plan.plan_cells(methods, several, 4)]
    assert spread == [(None, 0.5), ("uniform", 0.5), ("power", 0.5), ("power", 0.4)]


def test_a_method_may_have_a_grid_of_its_own(
    runs: Path, tmp_path: Path, compare: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = importlib.import_module("compare_plan")
    of_draws = f"DDM={runs / 'ddm'}:ddim/power"
    solvers = f"plain={runs / 'plain'}:ddim,unipc/uniform"
    methods = plan.parse_methods([of_draws, solvers])
    sweep = plan.Sweep(evaluations=(4,), churn=(0.0,), safety=(0.0,))
    cells = plan.plan_cells(methods, sweep, batch_size=4)
    assert [(cell.method.series, cell.sampling.grid) for cell in cells] == [
        ("DDM", "power"),
        ("plain", None),
        ("plain, unipc", "uniform"),
    ]
    two = plan.parse_methods([f"DDM={runs / 'ddm'}:ddim,ddim/power"])
    assert [method.series for method in two] == ["DDM", "DDM, ddim/power"]
    for wrong in ("ddim/linear", "ddim/"):
        request = ["--method", f"DDM={runs / 'ddm'}:{wrong}", "--output", str(tmp_path / "no")]
        assert compare.main([*request, "--features", "latents"]) == 2
        assert "grid" in capsys.readouterr().err


def test_scales_of_xi_are_tried_where_a_network_reads_it(runs: Path, compare: ModuleType) -> None:
    plan = importlib.import_module("compare_plan")
    methods = plan.parse_methods([f"DDM={runs / 'ddm'}", f"plain={runs / 'plain'}"])
    sweep = plan.Sweep(
        evaluations=(2,),
        churn=(0.0,),
        safety=(0.0,),
        xi_scales=(1.0, (0.5, 0.8)),
        noise_scales=(1.0, 0.9),
    )
    found = {
        (cell.method.name, cell.sampling.xi_scale, cell.sampling.noise_scale): cell.setting
        for cell in plan.plan_cells(methods, sweep, batch_size=4)
    }
    scales = [("DDM", 1.0), ("DDM", (0.5, 0.8)), ("plain", 1.0)]
    assert set(found) == {(*each, noise) for each in scales for noise in (1.0, 0.9)}
    assert len({setting for key, setting in found.items() if key[0] == "DDM"}) == 4
    one = replace(sweep, evaluations=(1,), xi_scales=(1.0, ScaleRange(1, 0.25), (0.5, 0.8)))
    drawn = [cell.sampling for cell in plan.plan_cells(methods[:1], one, batch_size=4)]
    assert [each.xi_scale for each in drawn] == [1.0, 1.0, 0.5, 0.5]  # each by both noises
    heun = plan.parse_methods([f"DDM={runs / 'ddm'}:heun"])
    four = replace(one, evaluations=(4,), noise_scales=(1.0,), grids=("uniform",))
    scales = [cell.sampling.xi_scale for cell in plan.plan_cells(heun, four, batch_size=4)]
    assert scales == [1.0, (1.0, 0.625, 0.25), (0.5, 0.8)]  # it makes three of four evaluations


@pytest.mark.parametrize("student", [False, True])
def test_what_a_run_is_sampled_by_is_among_the_settings_tried(
    runs: Path, compare: ModuleType, student: bool
) -> None:
    """Else the best known one, or the one that a student is trained for, is a matter of chance."""
    plan = importlib.import_module("compare_plan")
    (ddim, unipc) = plan.parse_methods([f"x={runs / 'ddm'}:ddim,unipc"])
    assert ddim.runs[0].sampler == SamplerConfig()  # of latents of few numbers
    sampler = SamplerConfig(solver="unipc", grid="power", xi_scale=(1.0, 0.25))
    trained = replace(ddim.runs[0], sampler=sampler, student=student)
    rows = [replace(row, runs=(trained,)) for row in (ddim, unipc)]
    scales = (1.0, 0.8, ScaleRange(1, 0.5), ScaleRange(1, 0.25))
    sweep = plan.Sweep(evaluations=(2, 4), xi_scales=scales, noise_scales=(1.0, 0.9), tries=3)
    tried = [cell.sampling for cell in plan.plan_cells(rows, sweep, batch_size=64)]
    assert [each.steps for each in tried] == [2] * 3 + [4] * 3
    for steps in (2, 4):
        own = SamplingConfig(steps=steps, churn=1.0) if student else sampler.settings(steps)
        assert own in tried
        assert SamplingConfig(steps=steps) in tried


def test_runs_of_one_method_are_averaged(runs: Path, tmp_path: Path, compare: ModuleType) -> None:
    def measure(method: str, output: Path) -> Any:
        request = ["--method", f"x={method}", "--features", "latents", "--samples", "12"]
        request += ["--reference-images", "20", "--evaluations", "2", "--churn", "0"]
        assert compare.main([*request, "--safety", "0", "--output", str(output)]) == 0
        (best,) = json.loads((output / "results.json").read_text())["best"]
        return best

    ddm, plain = f"{runs / 'ddm'}", f"{runs / 'plain'}"
    one, other = measure(ddm, tmp_path / "one"), measure(plain, tmp_path / "other")
    both = measure(f"{ddm},{plain}", tmp_path / "both")
    values = [each["values"]["latents/energy"] for each in (one, other)]
    assert both["values"]["latents/energy"] == pytest.approx(sum(values) / 2)
    assert both["spread"]["latents/energy"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    assert one["spread"]["latents/energy"] is None


def test_settings_are_chosen_on_some_samples_and_reported_on_fresh_ones(
    runs: Path, tmp_path: Path, compare: ModuleType
) -> None:
    request = ["--method", f"x={runs / 'ddm'},{runs / 'plain'}", "--features", "latents"]
    request += ["--samples", "12", "--reference-images", "20", "--evaluations", "2"]
    request += ["--safety", "0", "--churn", "1,0,0.5,0.75", "--tries", "3", "--confirm", "12"]
    output = tmp_path / "out"
    assert compare.main([*request, "--output", str(output)]) == 0
    report = json.loads((output / "results.json").read_text())
    (best,), tried, metric = report["best"], report["settings"], report["best_by"]
    assert len(tried) == 3  # on the first run; the first setting among them
    assert 1 in [setting["setting"]["churn"] for setting in tried]
    assert all(setting["spread"][metric] is None for setting in tried)
    chosen = min(tried, key=lambda setting: setting["values"][metric])
    assert best["setting"] == chosen["setting"]
    assert best["spread"][metric] > 0  # on both runs
    cells = [json.loads(path.read_text()) for path in (output / "cells").glob("*.json")]
    assert sorted(cell["sampling"]["seed"] for cell in cells) == [0, 0, 0, 1, 1]
    (method,) = report["methods"]
    assert len(method["runs"]) == 2


def test_runs_that_have_not_seen_as_many_images_are_not_averaged(
    runs: Path, tmp_path: Path, compare: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    shorter = tmp_path / "shorter"
    shutil.copytree(runs / "ddm", shorter)
    newest = sorted((shorter / "checkpoints").iterdir())[-1]
    shutil.rmtree(newest)
    request = ["--method", f"x={runs / 'ddm'},{shorter}", "--features", "latents"]
    assert compare.main([*request, "--output", str(tmp_path / "out")]) == 2
    assert f"{shorter} has no checkpoint at 16 images" in capsys.readouterr().err


def test_pictures_are_judged_against_reconstructions(
    runs: Path, tmp_path: Path, compare: ModuleType
) -> None:
    output = tmp_path / "out"
    done = compare.main(
        [
            *("--method", f"DDM={runs / 'ddm'}", "--reference", "portraits:24", "--reconstructed"),
            *("--samples", "10", "--reference-images", "16", "--evaluations", "2"),
            *("--churn", "0", "--safety", "0", "--seeds", "2", "--output", str(output)),
        ]
    )
    assert done == 0
    (finding,) = json.loads((output / "results.json").read_text())["best"]
    assert set(finding["values"]) == {"pyramid-v2/frechet", "pyramid-v2/energy"}
    assert finding["spread"]["pyramid-v2/frechet"] > 0  # two seeds are two draws
    assert finding["low"]["pyramid-v2/energy"] < finding["high"]["pyramid-v2/energy"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--method", "nothing"], "is no method"),
        (["--method", "x=RUN:euler"], "the solver 'euler' is none of ddim"),
        (["--method", "x=RUN@5"], "no valid checkpoint at 5 images"),
        (["--method", "DDM=RUN"], "'DDM' is named twice"),
        (["--churn", "2"], "--churn must lie"),
        (["--powers", "0"], "--powers must be positive"),
        (["--grids", "linear"], "there is no grid 'linear'; choose from uniform"),
        (["--features", "pyramid-v2"], "need --reference"),
        (["--metrics", "fid"], "fid is not defined"),
        (["--metrics", "fib"], "There is no metric 'fib'"),
        (["--metrics", "prdc"], "--metrics has no distance"),
        (["--best-by", "latents/kid"], "latents/kid is not measured; choose one of"),
    ],
)
def test_wrong_requests_end_in_one_sentence_and_exit_code_2(
    runs: Path,
    tmp_path: Path,
    compare: ModuleType,
    capsys: pytest.CaptureFixture[str],
    change: list[str],
    said: str,
) -> None:
    base = ["--method", f"DDM={runs / 'ddm'}", "--features", "latents", "--samples", "4"]
    base += ["--evaluations", "1", "--churn", "0", "--safety", "0", "--output", str(tmp_path / "o")]
    assert compare.main(base + [part.replace("RUN", str(runs / "ddm")) for part in change]) == 2
    assert said in capsys.readouterr().err


def test_the_training_that_a_run_began_with_counts(runs: Path, tmp_path: Path) -> None:
    """A start, or a student's teacher, moved or not; where it is not known there is no table."""
    plan, results = (importlib.import_module(f"compare_{name}") for name in ("plan", "results"))
    begun = tmp_path / "begun"
    shutil.copytree(runs / "ddm", begun)
    text = (begun / "config.yaml").read_text()
    (begun / "config.yaml").write_text(text.replace("start: null", "start: moved"))
    with pytest.raises(UserError, match=r"trained_before\.json.* is missing"):
        plan.parse_methods([f"x={begun}"])
    RunFolder(begun).keep_effort_before(Effort(images=100, seconds=70.0, core_seconds=60.0))
    alone, whole = (
        results.training_record(plan.parse_methods([f"x={run}"])[0])
        for run in (runs / "ddm", begun)
    )
    assert (alone["images"], whole["images"]) == (16, 116)
    assert whole["training_seconds"] == pytest.approx(60 + alone["training_seconds"])


def test_another_content_of_the_reference_is_another_comparison(
    runs: Path, tmp_path: Path, compare: ModuleType
) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for index in range(4):
        save_image(pictures / f"{index}.png", np.full((32, 32, 3), 60 * index, np.uint8))
    request = ["--method", f"DDM={runs / 'ddm'}", "--reference", str(pictures), "--samples", "4"]
    request += ["--evaluations", "1", "--safety", "0", "--output", str(tmp_path / "out")]

    def measured() -> float:
        assert compare.main(request) == 0
        (best,) = json.loads((tmp_path / "out" / "results.json").read_text())["best"]
        return float(best["values"]["pyramid-v2/frechet"])

    first = measured()
    assert measured() == first
    save_image(pictures / "4.png", np.full((32, 32, 3), 255, np.uint8))
    assert measured() != first


def test_settings_of_older_weights_are_not_kept_for_the_newest(
    runs: Path, tmp_path: Path, compare: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs / "ddm", run)
    (run / "sampling.json").unlink(missing_ok=True)
    request = ["--method", f"DDM={run}@8", "--features", "latents", "--samples", "4"]
    assert compare.main([*request, "--output", str(tmp_path / "out"), "--keep-best"]) == 2
    assert_names(capsys.readouterr().err, "--keep-best", str(run), "at 8 images", "trained for")
    assert not (run / "sampling.json").exists()


def test_every_class_is_drawn_or_the_comparison_refused(
    runs: Path, compare: ModuleType, tmp_path: Path
) -> None:
    plan = importlib.import_module("compare_plan")
    (method,) = plan.parse_methods([f"DDM={runs / 'ddm'}"])
    labelled = replace(method, runs=tuple(replace(run, classes=10) for run in method.runs))
    compare.require_each_class([method, labelled], Namespace(samples=10, confirm=None))
    for samples, confirm, named in ((9, 100, "--samples is 9"), (100, 9, "--confirm is 9")):
        with pytest.raises(UserError, match=f"{named}, too few .* the 10 classes"):
            compare.require_each_class([labelled], Namespace(samples=samples, confirm=confirm))


def test_results_of_another_protocol_are_refused(
    runs: Path, tmp_path: Path, compare: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    """A cell that someone measured against another reference is named, not averaged in."""
    output = tmp_path / "out"
    assert compare.main(arguments(runs, output)) == 0
    cell = sorted((output / "cells").glob("*.json"))[0]
    entry = json.loads(cell.read_text())
    entry["results"]["latents/frechet"]["protocol"]["reference_hash"] = "sha256:other"
    cell.write_text(json.dumps(entry))
    assert compare.main(arguments(runs, output)) == 2
    assert "reference_hash" in capsys.readouterr().err
    shutil.rmtree(output)
