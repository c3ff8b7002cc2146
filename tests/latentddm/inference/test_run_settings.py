"""A run is sampled by its best settings, else by the sampler of its config."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import ONE_LEVEL, generator_config

from latentddm.cli import main
from latentddm.diffusion.process import Prediction
from latentddm.hub.pipeline import LatentDDMPipeline
from latentddm.inference.best_settings import write_best_settings
from latentddm.inference.generator import Generator
from latentddm.inference.run_settings import RunSettings
from latentddm.inference.sampler import SamplerConfig
from latentddm.inference.settings import SamplingConfig
from latentddm.training.config import TrainConfig
from latentddm.training.generator import train

FALLING = SamplerConfig(solver="unipc", grid="power", xi_scale=(1.0, 0.5))
FOUR = SamplingConfig(steps=4, solver="unipc", grid="power", xi_scale=(1.1, 0.9, 0.5, 0.2))


def test_the_best_of_a_number_of_evaluations_goes_before_the_sampler() -> None:
    own = RunSettings(best={4: FOUR}, sampler=FALLING)
    assert own.at(4, seed=3) == replace(FOUR, seed=3)
    assert own.at(2) == SamplingConfig(steps=2, solver="unipc", grid="power", xi_scale=(1.0, 0.5))
    assert own.at(4, churn=0.5) == SamplingConfig(steps=4, churn=0.5)  # all others are exact then
    assert RunSettings().at(4) == SamplingConfig(steps=4)


def test_between_the_counts_that_were_measured_the_nearest_one_of_the_solver_counts() -> None:
    own = RunSettings(best={4: FOUR, 8: replace(FOUR, steps=8, xi_scale=0.9)})
    assert own.of_solver("unipc", 4) == FOUR
    assert own.of_solver("unipc", 50) == replace(own.best[8], steps=50)
    near = own.of_solver("unipc", 3)
    assert near == replace(FOUR, steps=3, xi_scale=pytest.approx((1.1, 0.65, 0.2)))
    assert own.of_solver("deis", 4) == SamplingConfig(steps=4)
    assert RunSettings(sampler=FALLING).of_solver("unipc", 3) == FALLING.settings(3)


def test_sampling_begins_with_four_evaluations_or_the_nearest_that_has_settings() -> None:
    measured: tuple[tuple[int, ...], ...] = ((), (2, 4), (8,), (1, 3))
    begun = [RunSettings(best=dict.fromkeys(each, FOUR)).steps for each in measured]
    assert begun == [4, 4, 8, 3]
    assert RunSettings(best={2: FOUR, 4: FOUR}, made_for=1).steps == 1  # a student's own


@pytest.fixture(scope="module")
def config(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    output = tmp_path_factory.mktemp("runs") / "run"
    return replace(generator_config(tiny_store, output), sampler=FALLING)


@pytest.fixture(scope="module")
def run(config: TrainConfig) -> Path:
    """A run whose config has a sampler of its own."""
    return train(config).path


def drawn(run: Path, output: Path, *options: str) -> torch.Tensor:
    arguments = ("sample", str(run), "--num", "3", "--output", str(output), *options)
    assert main(list(arguments)) == 0
    return load_file(output / "latents.safetensors")["latents"]


def test_sample_python_and_an_export_draw_by_the_sampler_of_the_config(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        own = drawn(run, tmp_path / "own")
    assert "the run's sampler (UniPC, ξ × 1 to 0.5)" in caplog.text
    written = json.loads((tmp_path / "own" / "samples.json").read_text())
    assert written["xi_scale"] == pytest.approx([1.0, 5 / 6, 2 / 3, 0.5])
    options = ("--solver", "unipc", "--grid", "power", "--xi-scale", "1..0.5")
    assert torch.equal(own, drawn(run, tmp_path / "explicit", *options))
    assert not torch.equal(own, drawn(run, tmp_path / "exact", "--solver", "ddim"))
    generator = Generator.load(run)
    assert torch.equal(own, generator.draw(3, generator.settings()))

    assert main(["export", str(run), str(tmp_path / "export")]) == 0
    pipeline = LatentDDMPipeline.from_pretrained(tmp_path / "export")
    images = pipeline(3, pipeline.generators(0, 3), num_inference_steps=4, output_type="latent")
    torch.testing.assert_close(images.images, own, rtol=1e-5, atol=1e-5)


def test_best_settings_go_before_it(run: Path, tmp_path: Path) -> None:
    measured = Path(shutil.copytree(run, tmp_path / "run"))
    write_best_settings(measured, 0, "fid", {2: SamplingConfig(steps=2, churn=0.5)})
    own = Generator.load(measured)
    assert own.settings() == SamplingConfig(steps=2, churn=0.5)
    assert own.settings(4) == FALLING.settings(4)


def test_another_sampler_changes_previews_and_samples_and_no_weight(
    config: TrainConfig, run: Path, tmp_path: Path
) -> None:
    exact = replace(config, output=str(tmp_path / "run"), sampler=SamplerConfig())
    assert train(exact).path == tmp_path / "run"
    weights, others = (
        Generator.load(each).network.state_dict() for each in (run, tmp_path / "run")
    )
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    previews = [sorted((each / "samples").glob("*.png"))[-1] for each in (run, tmp_path / "run")]
    assert previews[0].read_bytes() != previews[1].read_bytes()
    train(replace(exact, sampler=FALLING))  # a finished run takes it as well
    assert Generator.load(tmp_path / "run").settings() == FALLING.settings(4)


def test_a_run_keeps_the_sampler_that_fits_its_latents(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = generator_config(tiny_store, tmp_path / "few")
    assert Generator.load(train(plain).path).settings() == SamplingConfig(steps=4)
    monkeypatch.setattr("latentddm.inference.xi_scale.MANY_NUMBERS", 2)
    many = Generator.load(train(replace(plain, output=str(tmp_path / "many"))).path)
    assert many.settings().xi_scale == (1.0, 0.75, 0.5, 0.25)
    monkeypatch.undo()
    assert Generator.load(tmp_path / "many").settings() == many.settings()


@pytest.mark.parametrize(("prediction", "schedule"), [("eps", "flow"), ("v", "cosine")])
def test_every_prediction_and_schedule_is_sampled_and_exported_by_it(
    tiny_store: Path, tmp_path: Path, prediction: Prediction, schedule: str
) -> None:
    """Predictions of eps have no x_0 at t = 1; solvers of diffusers know the flow schedule."""
    network = replace(ONE_LEVEL, prediction=prediction)
    config = generator_config(tiny_store, tmp_path / "run", network=network, schedule=schedule)
    run = train(replace(config, sampler=FALLING)).path
    assert len(list((run / "samples").iterdir())) == 1
    assert drawn(run, tmp_path / "samples").isfinite().all()
    assert main(["export", str(run), str(tmp_path / "export")]) == 0
