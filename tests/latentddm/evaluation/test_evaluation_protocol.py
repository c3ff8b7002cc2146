"""Every value has its protocol, and values of different protocols do not compare."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, fields, replace

import pytest
import torch
from torch import Tensor

from latentddm.engine.errors import UserError
from latentddm.evaluation import PyramidExtractor, Result, evaluate_images, extract_features
from latentddm.evaluation.metrics import METRICS, SAMPLE_METRICS
from latentddm.evaluation.protocol import Protocol, warn_of_small_samples


def random_images(count: int, seed: int, light: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 8, 8, generator=generator) * 150 + light
    fine = torch.nn.functional.interpolate(coarse, 32, mode="bilinear")
    return fine.clamp(0, 255).byte().permute(0, 2, 3, 1)


@pytest.fixture(scope="module")
def result() -> Result:
    return evaluate_images(random_images(40, 1, 30), random_images(60, 2), ["energy"])["energy"]


def test_the_protocol_states_metric_features_and_reference(result: Result) -> None:
    about = result.protocol
    assert (about.metric, about.n, about.n_reference, about.size) == ("energy", 40, 60, 32)
    assert about.features == "pyramid-v2"
    assert about.features_hash == PyramidExtractor().hash
    assert about.reference_hash.startswith("sha256:")
    assert "antialiasing" in about.resize
    assert "bootstrap" in about.interval
    assert result.low < result.value < result.high


def test_results_are_equal_after_json(result: Result) -> None:
    assert Result.from_json(json.loads(json.dumps(result.to_json()))) == result
    with pytest.raises(UserError, match=r"result.*'protocol'"):
        Result.from_json({"value": 1.0})
    stored = result.to_json()
    del stored["protocol"]["seed"]
    with pytest.raises(UserError, match=r"protocol.*'seed'"):
        Result.from_json(stored)


def test_results_of_one_protocol_compare(result: Result) -> None:
    worse = evaluate_images(random_images(40, 1, 90), random_images(60, 2), ["energy"])["energy"]
    assert result < worse
    assert worse >= result
    assert worse - result == worse.value - result.value
    assert worse / result == worse.value / result.value


OTHER = {"n": 41, "n_reference": 61, "size": 64, "seed": 1}


@pytest.mark.parametrize("name", [f.name for f in fields(Protocol) if f.name != "reference"])
def test_any_difference_of_protocol_is_refused_and_named(result: Result, name: str) -> None:
    other = replace(result, protocol=replace(result.protocol, **{name: OTHER.get(name, "other")}))
    for compare in (
        lambda: result - other,
        lambda: result / other,
        lambda: result < other,
        lambda: result <= other,
        lambda: result > other,
        lambda: result >= other,
    ):
        with pytest.raises(UserError, match=rf"\b{name} is"):
            compare()


def test_the_name_of_the_reference_is_for_people_only(result: Result) -> None:
    moved = replace(result.protocol, reference="another path to the same pixels")
    assert result - replace(result, protocol=moved) == 0


def test_another_reference_has_another_hash() -> None:
    images, reference = random_images(20, 1), random_images(30, 2)
    first = evaluate_images(images, reference, ["energy"])["energy"]
    reference[7, 3, 3, 1] += 1
    second = evaluate_images(images, reference, ["energy"])["energy"]
    with pytest.raises(UserError, match="reference_hash"):
        _ = first - second


def test_batches_and_kept_reference_features_change_nothing() -> None:
    images, reference = random_images(50, 1, 20), random_images(70, 2)
    metrics = ["frechet", "energy", "mmd", "kernel", "sliced", "prdc"]
    whole = evaluate_images(images, reference, metrics)
    kept = extract_features(reference, PyramidExtractor(), name="reference", batch_size=3)
    parts = evaluate_images(images, kept, metrics, batch_size=7)
    assert list(whole) == [*metrics[:-1], "precision", "recall", "density", "coverage"]
    for name, value in whole.items():
        assert parts[name] - value == pytest.approx(0, abs=1e-4 * max(1.0, abs(value.value)))


def test_a_set_against_itself_has_no_distance() -> None:
    images = random_images(50, 1)
    results = evaluate_images(images, images, ["frechet", "sliced", "prdc"])
    assert abs(results["frechet"].value) < 1e-3
    assert results["sliced"].value < 1e-3
    assert results["coverage"].value == 1


def test_fid_and_kid_are_the_names_of_nothing_else() -> None:
    for name, instead in {"fid": "frechet", "kid": "kernel"}.items():
        with pytest.raises(UserError, match=rf"{name} .*pyramid-v2.*{instead}"):
            evaluate_images(random_images(5, 1), random_images(5, 2), [name])


def test_a_metric_that_does_not_exist_is_refused_with_the_list() -> None:
    with pytest.raises(UserError) as caught:
        evaluate_images(random_images(5, 1), random_images(5, 2), ["frechett"])
    assert "'frechett'" in str(caught.value)
    assert all(name in str(caught.value) for name in (*METRICS, *SAMPLE_METRICS))


def test_other_sizes_and_single_images_are_refused() -> None:
    large = torch.zeros(5, 64, 64, 3, dtype=torch.uint8)
    with pytest.raises(UserError, match=r"32 .*reference 64"):
        evaluate_images(random_images(5, 1), large)
    with pytest.raises(UserError, match=r"two .*1\b"):
        evaluate_images(random_images(1, 1), random_images(5, 2))


def test_few_images_are_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    warn_of_small_samples.cache_clear()
    with caplog.at_level(logging.WARNING, logger="latentddm"):
        evaluate_images(random_images(5, 1), random_images(5, 2), ["energy"])
        evaluate_images(random_images(5, 1), random_images(5, 2), ["energy"])
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "10000" in caplog.text


def test_a_result_prints_in_one_line(result: Result) -> None:
    assert "\n" not in str(result)
    assert "pyramid-v2, n = 40 against 60" in str(result)
    assert set(asdict(result)) == {"value", "low", "high", "protocol"}
