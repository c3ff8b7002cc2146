"""The attribute metric names the lost attributes of portraits, each with its distance."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from autoencoder.portraits import ATTRIBUTES
from latentddm.engine.errors import UserError
from latentddm.evaluation import attributes, evaluate_images
from latentddm.evaluation.attributes import AttributeExtractor, attribute_estimates

DEFAULT = {name: values[0] for name, values in ATTRIBUTES.items()}


def features_of(readings: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch) -> Tensor:
    monkeypatch.setattr(attributes, "classify_attributes", lambda pixels: readings)
    return AttributeExtractor()(torch.zeros(len(readings), 32, 32, 3, dtype=torch.uint8))


def test_total_variation_of_each_attribute_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    none, round_, square = ATTRIBUTES["glasses"]
    with_glasses = [
        {**DEFAULT, "glasses": value} for value in (none, none, round_, square, square, square)
    ]
    without = [{**DEFAULT, "glasses": none}] * 4
    a, b = features_of(without, monkeypatch), features_of(with_glasses, monkeypatch)
    estimates = attribute_estimates(a, b)
    # Shares 1, 0, 0 against 2/6, 1/6, 3/6: half the sum of the differences is 2/3.
    assert estimates["attributes/glasses"].value == pytest.approx(2 / 3)
    assert estimates["attributes/hair"].value == 0
    assert estimates["attributes"].value == pytest.approx(2 / 3 / len(ATTRIBUTES))
    assert set(estimates) == {"attributes", *(f"attributes/{name}" for name in ATTRIBUTES)}


def test_influence_predicts_the_effect_of_one_more_portrait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    none, round_, _ = ATTRIBUTES["glasses"]
    few = [{**DEFAULT, "glasses": round_}] * 3 + [{**DEFAULT, "glasses": none}] * 7
    many = [{**DEFAULT, "glasses": round_}] * 8 + [{**DEFAULT, "glasses": none}] * 2
    a, b = features_of(few, monkeypatch), features_of(many, monkeypatch)
    before = attribute_estimates(a, b)["attributes/glasses"]
    after = attribute_estimates(torch.cat([a, a[:1]]), b)["attributes/glasses"]
    assert after.value - before.value == pytest.approx(float(before.influence[0]) / 11)


def test_the_metric_works_in_its_own_features_only() -> None:
    images = torch.zeros(3, 32, 32, 3, dtype=torch.uint8)
    with pytest.raises(UserError, match=r"attributes .*portrait-attributes-v1.*pyramid-v2"):
        evaluate_images(images, images, ["attributes"])
