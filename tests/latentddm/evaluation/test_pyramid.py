"""The built-in features put two people in one head above a little softness."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch
from torch import Tensor

from autoencoder.images import Preprocessing, Selection, open_source, read_pixels
from latentddm.evaluation.distances import frechet_estimate
from latentddm.evaluation.features import FeatureExtractor, extract_features
from latentddm.evaluation.pyramid import PyramidExtractor

TOOLS = Path(__file__).parents[3] / "tools"
FACES = Path(__file__).parents[3].parent / "shared" / "data" / "faces128"
SUMS = [49.1625, 111.9823, 26.9414, 115.8041, 141.9877, -6.25]
"""Of the parts of one image's features, and of all of them by cos(0), cos(1), ..."""
HASH = "sha256:b98420e69beaf4e9823d79838102d189a744c5d84c0bb9c74ed93960f345cc62"


def excess_over_blur(
    source: str, count: int, extractor: FeatureExtractor, monkeypatch: pytest.MonkeyPatch
) -> tuple[float, float]:
    """Excess Fréchet distance of halves and of quarters over that of the blur of 0.6 pixels."""
    monkeypatch.syspath_prepend(str(TOOLS))
    sets = importlib.import_module("ruler_sets").ImageSets(source, size=64, count=count)
    reference = extractor(sets.pixels("reference"))

    def distance(name: str) -> float:
        return frechet_estimate(extractor(sets.pixels(name)), reference).value

    floor = distance("unaltered")
    halves, quarters, blur = (distance(n) - floor for n in ("halves", "quarters", "blur-0.6"))
    return halves / blur, quarters / blur


def test_halves_and_quarters_of_portraits_stand_above_softness(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    halves, quarters = excess_over_blur("portraits", 80, PyramidExtractor(), monkeypatch)
    assert halves > 1.2
    assert quarters > 2.5


@pytest.mark.slow
@pytest.mark.skipif(not FACES.is_dir(), reason="the faces lie in shared/ beside the checkout")
def test_halves_and_quarters_of_faces_stand_above_softness_as_in_fid(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    halves, quarters = excess_over_blur(str(FACES), 500, PyramidExtractor(), monkeypatch)
    assert halves > 1.2
    assert quarters > 2.5


def portraits(count: int) -> Tensor:
    source = open_source("portraits", 64)
    return torch.from_numpy(
        read_pixels(Selection(source, range(count)), Preprocessing(size=64), workers=0)[0]
    )


def test_each_image_counts_by_itself() -> None:
    pixels, extractor = portraits(53), PyramidExtractor()
    together = extractor(pixels)
    assert together.shape == (53, extractor.dimension)
    alone = torch.cat([extractor(image[None]) for image in pixels])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    assert float(together.var(0).min()) > 0
    small = extract_features(pixels, extractor, batch_size=7)
    torch.testing.assert_close(small.values, together, atol=1e-5, rtol=1e-5)
    assert small.images_hash == extract_features(pixels, extractor, batch_size=64).images_hash


def test_relations_are_of_the_picture_and_not_of_its_side() -> None:
    # A mirrored picture has mirrored pairs of cells: the relations of each row are the same.
    pixels, extractor = portraits(4), PyramidExtractor()
    relations = extractor(pixels)[:, -96:].unflatten(1, (2, 48))
    mirrored = extractor(pixels.flip(2))[:, -96:].unflatten(1, (2, 48))
    first, second = extractor._pairs.tolist()
    place = {pair: k for k, pair in enumerate(zip(first, second, strict=True))}

    def mirror(cell: int) -> int:
        return 4 * (cell // 4) + 3 - cell % 4

    order = [
        place[tuple(sorted((mirror(a), mirror(b))))] for a, b in zip(first, second, strict=True)
    ]
    # The two diagonal orientations change places, which a distance does not see.
    torch.testing.assert_close(relations, mirrored[:, :, order], atol=1e-3, rtol=1e-3)


def test_the_features_of_one_image_and_the_hash_have_not_changed() -> None:
    # A change of these is a new feature space: rename it, do not edit the figures.
    axis = torch.arange(48)
    down, right = axis[:, None], axis[None]
    image = torch.stack(
        [5 * down + 0 * right, (down * right) % 256, 255 - 3 * down + 0 * right], -1
    )
    features = PyramidExtractor()(image.byte()[None])[0]
    sums = [float(part.sum()) for part in features.split([96, 128, 24, 48, 48])]
    in_order = float(features @ torch.arange(len(features)).float().cos())
    assert [*sums, in_order] == pytest.approx(SUMS, rel=1e-4)
    assert (PyramidExtractor.name, PyramidExtractor.hash) == ("pyramid-v2", HASH)
