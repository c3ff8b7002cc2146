"""The linear baseline is the best linear autoencoder of its rate."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest
import torch
from messages import raises_naming

from latentddm.engine.errors import UserError

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture
def baseline(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(TOOLS))
    return importlib.import_module("pca_baseline")


def test_pixels_and_patches_are_inverse(baseline: ModuleType) -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (3, 24, 24, 3), dtype=torch.uint8, generator=generator)
    patches = baseline.to_patches(pixels, 8)
    assert patches.shape == (27, 192)
    assert torch.equal(patches[1].reshape(8, 8, 3), pixels[0, :8, 8:16].float())
    assert torch.equal(baseline.to_pixels(patches, 8, 24), pixels)


@pytest.mark.parametrize("count", [200, 20])  # more vectors than values, and fewer
def test_the_error_is_the_sum_of_the_dropped_squared_singular_values(
    baseline: ModuleType, count: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(count, 30, generator=generator, dtype=torch.float64)
    vectors = vectors @ torch.diag(torch.arange(1.0, 31.0, dtype=torch.float64)) + 5
    code = baseline.LinearCode.fit(vectors, 7)
    error = (code.reconstruct(vectors) - vectors).square().sum()
    expected = torch.linalg.svdvals(vectors - vectors.mean(0))[7:].square().sum()
    torch.testing.assert_close(error, expected)


def test_too_few_pictures_are_refused(baseline: ModuleType) -> None:
    with raises_naming(UserError, "6 components", "5 of 30", "more images"):
        baseline.LinearCode.fit(torch.zeros(5, 30), 6)
