"""One more metric or feature space is one function or class and one line of a registry."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from latentddm.cli import main
from latentddm.engine.errors import UserError
from latentddm.evaluation import Result, evaluate_images
from latentddm.evaluation.evaluate import evaluate_features
from latentddm.evaluation.extractors import EXTRACTORS, open_extractor
from latentddm.evaluation.features import extract_features
from latentddm.evaluation.folders import EvaluationOptions, evaluate_folders
from latentddm.evaluation.manifold import NEIGHBOURS
from latentddm.evaluation.metrics import METRICS, SAMPLE_METRICS, Metric, SampleMetric
from latentddm.evaluation.protocol import Estimate, Protocol, estimate_from, mean_estimate


def mean_shift(samples: Tensor, reference: Tensor, seed: int) -> Estimate:
    """|E X - E Y|; the influence of a row is its deviation from the mean along the shift."""
    shift = samples.double().mean(0) - reference.double().mean(0)
    return estimate_from(shift.norm(), samples.double() @ shift / shift.norm())


class MeanColour:
    """The mean of each colour channel, in 0 .. 1."""

    name = "mean-colour-v1"
    dimension = 3
    hash = "sha256:constant"
    resize = "none"

    def __call__(self, pixels: Tensor) -> Tensor:
        return pixels.float().mean((1, 2)) / 255


def brightness(images: Tensor, seed: int) -> Result:
    """Mean of all pixels of one set of images."""
    estimate = mean_estimate(images.double().mean((1, 2, 3)))
    protocol = Protocol(
        metric="brightness",
        estimator="mean of the pixels",
        n=len(images),
        n_reference=0,
        size=images.shape[1],
        features="pixels",
        features_hash="none",
        resize="none",
        reference_hash="none",
        seed=seed,
        interval=estimate.interval,
        reference="none",
    )
    return Result.of(estimate, protocol)


@pytest.fixture
def with_new_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METRICS, "mean_shift", Metric(mean_shift, "distance of the means"))
    monkeypatch.setitem(EXTRACTORS, MeanColour.name, lambda argument, size, device: MeanColour())
    monkeypatch.setitem(SAMPLE_METRICS, "brightness", SampleMetric(lambda _: brightness, images=4))


def noise(count: int, seed: int, light: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.integers(light, light + 100, (count, 32, 32, 3), dtype=np.uint8)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[str, str]:
    for name, pixels in {"images": noise(12, 1, 100), "reference": noise(15, 2, 20)}.items():
        (tmp_path / name).mkdir()
        for index, image in enumerate(pixels):
            Image.fromarray(image).save(tmp_path / name / f"{index:02d}.png")
    return str(tmp_path / "images"), str(tmp_path / "reference")


def expected_shift() -> float:
    means = [noise(*of).mean((0, 1, 2)) / 255 for of in ((12, 1, 100), (15, 2, 20))]
    return float(np.linalg.norm(means[0] - means[1]))


@pytest.mark.usefixtures("with_new_entries")
def test_a_new_metric_comes_out_with_its_interval_and_its_protocol() -> None:
    images, reference = noise(12, 1, 100), noise(15, 2, 20)
    result = evaluate_images(images, reference, ["mean_shift"], MeanColour())["mean_shift"]
    assert result.value == pytest.approx(expected_shift(), rel=1e-5)
    assert result.low < result.value < result.high
    about = result.protocol
    assert (about.metric, about.estimator) == ("mean_shift", "distance of the means")
    assert (about.features, about.n, about.n_reference) == ("mean-colour-v1", 12, 15)
    assert set(evaluate_images(images, reference, ["energy", "mean_shift"])) == {
        "energy",
        "mean_shift",
    }


@pytest.mark.usefixtures("with_new_entries")
def test_new_metrics_and_features_are_names_on_the_command_line(
    folders: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, reference = folders
    output = tmp_path / "numbers.json"
    arguments = ["evaluate", images, "--reference", reference, "--output", str(output)]
    chosen = ["--metrics", "mean_shift,brightness", "--features", MeanColour.name]
    assert main([*arguments, *chosen]) == 0
    printed = capsys.readouterr().out
    results = json.loads(output.read_text())["results"]
    assert results["mean_shift"]["value"] == pytest.approx(expected_shift(), rel=1e-5)
    assert results["mean_shift"]["protocol"]["features"] == MeanColour.name
    assert results["brightness"]["protocol"]["n"] == 4
    assert "mean_shift" in printed
    assert "brightness" in printed


@pytest.mark.usefixtures("with_new_entries")
def test_an_unknown_name_is_answered_with_the_new_ones_too(folders: tuple[str, str]) -> None:
    with pytest.raises(UserError, match=r"mean_shfit.*mean_shift.*brightness"):
        evaluate_folders(*folders, EvaluationOptions(metrics=["mean_shfit"]))
    with pytest.raises(UserError, match=rf"colour.*{MeanColour.name}"):
        open_extractor("colour", 32)
    for name in (f"{MeanColour.name}:argument", "latent"):
        with pytest.raises(UserError, match=name):
            open_extractor(name, 32)


def test_a_metric_of_one_space_is_computed_there_beside_others_in_theirs(
    folders: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    metric = Metric(mean_shift, "distance of the means", features=MeanColour.name)
    monkeypatch.setitem(METRICS, "colour_shift", metric)
    monkeypatch.setitem(METRICS, "mean_shift", Metric(mean_shift, "distance of the means"))
    monkeypatch.setitem(EXTRACTORS, MeanColour.name, lambda argument, size, device: MeanColour())
    options = EvaluationOptions(metrics=["colour_shift", "energy"])
    results = evaluate_folders(*folders, options).results
    assert results["colour_shift"].protocol.features == MeanColour.name
    assert results["energy"].protocol.features == "pyramid-v2"
    with pytest.raises(UserError, match=r"colour_shift.*use mean_shift"):
        evaluate_folders(
            *folders, EvaluationOptions(metrics=["colour_shift"], features="pyramid-v2")
        )


@pytest.mark.parametrize("name", list(METRICS))
def test_every_metric_has_its_best_value_for_a_set_against_itself(name: str) -> None:
    features = extract_features(noise(30, 1, 50), open_extractor("pyramid-v2", 32))
    space = METRICS[name].features
    if space is not None:  # rows of another space stand for those of the only one it is defined in
        features = replace(features, space=replace(features.space, name=space))
    for part, result in evaluate_features(features, features, [name]).items():
        if part in ("energy", "mmd", "kernel", "kid"):
            # A U-statistic leaves out the zeros within each set, and has them across the sets.
            assert result.value < 0
        elif part == "density":
            # Its own ball and k others; rows exactly on the border of a ball may round to outside.
            assert result.value == pytest.approx(1 + 1 / NEIGHBOURS, abs=0.05)
        else:
            perfect = 1.0 if part in ("precision", "recall", "coverage") else 0.0
            assert result.value == pytest.approx(perfect, abs=1e-3)
