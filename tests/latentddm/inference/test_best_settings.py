"""The best settings measured for a run are those of its samples, unless others are asked for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from messages import raises_naming
from safetensors.torch import load_file
from tiny_runs import generator_config

from latentddm.cli import main
from latentddm.engine.errors import UserError
from latentddm.hub.pipeline import LatentDDMPipeline
from latentddm.inference.best_settings import (
    FILE_NAME,
    best_settings,
    write_best_settings,
)
from latentddm.inference.settings import SamplingConfig
from latentddm.training.generator import train

BEST = {
    3: SamplingConfig(steps=3, solver="dpmsolver++", grid="power", power=0.4, noise_scale=0.9),
    4: SamplingConfig(steps=4, grid="power", churn=0.5, xi_scale=(0.5, 0.9)),
    5: SamplingConfig(steps=5, solver="heun"),
}


@pytest.fixture(scope="module")
def trained(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(generator_config(tiny_store, tmp_path_factory.mktemp("runs") / "run")).path


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A run with its best settings."""
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    write_best_settings(run, 0, "inception/fid against held-out pictures", BEST)
    return run


def latents(*arguments: object, output: Path) -> torch.Tensor:
    options = ("--num", "3", "--output", output)
    assert main(["sample", *map(str, (*arguments, *options))]) == 0
    return load_file(output / "latents.safetensors")["latents"]


def test_they_are_read_as_they_were_written(run: Path, trained: Path) -> None:
    assert best_settings(run, 0) == BEST
    assert best_settings(run, 1) == best_settings(trained, 0) == {}  # another phase's weights


def test_sample_draws_with_them(run: Path, trained: Path, tmp_path: Path) -> None:
    explicit = ("--grid", "power", "--churn", "0.5", "--xi-scale", "0.5,0.9")
    expected = latents(trained, *explicit, output=tmp_path / "explicit")
    assert torch.equal(latents(run, output=tmp_path / "own"), expected)
    settings = json.loads((tmp_path / "own" / "samples.json").read_text())
    assert (settings["churn"], settings["xi_scale"]) == (0.5, [0.5, 0.9])
    plain = latents(trained, output=tmp_path / "plain")
    assert torch.equal(latents(run, "--churn", "0", output=tmp_path / "exact"), plain)
    assert not torch.equal(plain, expected)


@pytest.mark.parametrize("steps", [3, 4])
def test_an_exported_pipeline_draws_with_them(run: Path, tmp_path: Path, steps: int) -> None:
    expected = latents(run, "--steps", steps, output=tmp_path / "samples")
    assert main(["export", str(run), str(tmp_path / "export"), "--steps", str(steps)]) == 0
    pipeline = LatentDDMPipeline.from_pretrained(tmp_path / "export")
    drawn = pipeline(
        3, pipeline.generators(0, 3), num_inference_steps=steps, output_type="latent"
    ).images
    torch.testing.assert_close(drawn, expected, rtol=1e-5, atol=1e-5)
    one = pipeline(1, pipeline.generators(0, 1), num_inference_steps=1, output_type="latent")
    assert one.images.isfinite().all()  # fewer evaluations than scales


def test_an_export_says_that_it_leaves_out_what_its_scheduler_lacks(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    arguments = ["export", str(run), str(tmp_path / "export"), "--steps", "5"]
    assert main(arguments) == 0
    assert "for 5 evaluations are of heun" in caplog.text
    scheduler = LatentDDMPipeline.from_pretrained(tmp_path / "export").scheduler
    assert scheduler.config["solver"] == "ddim"


def test_the_page_begins_with_them(run: Path) -> None:
    gradio = pytest.importorskip("gradio")
    from latentddm.play.page import _settings
    from latentddm.play.renderer import Renderer

    with gradio.Blocks():
        _, evaluations, xi_scale, _, solver, churn, *_ = _settings(Renderer.open(run))
    assert (evaluations.value, xi_scale.value, solver.value, churn.value) == (4, 0.5, "ddim", 0.5)


@pytest.mark.parametrize(
    "text",
    [
        '{"phase": 0, "settings": {"4": {}}}',
        '{"phase": 0, "settings": {"four": {}}}',
        '{"phase": 0, "settings": [4]}',
        "{}",
        '{"settings": {}}',
        '{"phase": 0, "settings": {"4": {"solver": "ddim", "grid": null, "power": "x", "churn": 0, '
        '"safety": 0, "xi_scale": 1, "noise_scale": 1}}}',
    ],
)
def test_a_damaged_file_is_named(run: Path, text: str) -> None:
    (run / FILE_NAME).write_text(text)
    with raises_naming(UserError, str(run / FILE_NAME), "delete it"):
        best_settings(run, 0)
