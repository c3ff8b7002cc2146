"""The built-in features respond to visible damage, and are the same on every machine."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from latentddm.engine.errors import UserError
from latentddm.evaluation.distances import energy_distance, frechet_estimate
from latentddm.evaluation.extractors import LatentExtractor
from latentddm.evaluation.features import FeatureCollector, extract_features, merge_features
from latentddm.evaluation.pyramid import PyramidExtractor


def scenes(count: int, seed: int, size: int = 64) -> Tensor:
    """Discs of random place, size and colour with stripes on them, over a shaded background."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=generator)

    axis = (torch.arange(size) + 0.5) / size
    y, x = axis[:, None], axis[None, :]
    image = draw(3, 1, 1) * 0.7 + 0.3 * draw(3, 1, 1) * (x + y)[None, None]
    for _ in range(4):
        place, radius, angle = draw(2, 1, 1), 0.08 + 0.2 * draw(1, 1), 6.3 * draw(1, 1)
        inside = ((x - place[:, 0]) ** 2 + (y - place[:, 1]) ** 2).sqrt() < radius
        stripes = 0.5 + 0.5 * torch.sin(90 * (x * angle.cos() + y * angle.sin()))
        colour = draw(3, 1, 1) * (0.4 + 0.6 * stripes[:, None])
        image = torch.where(inside[:, None], colour, image)
    return (image.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).contiguous()


def blurred(pixels: Tensor, times: int) -> Tensor:
    kernel = torch.tensor([1.0, 2, 1])
    kernel = (kernel[:, None] * kernel[None] / 16).expand(3, 1, 3, 3)
    images = pixels.permute(0, 3, 1, 2).float()
    for _ in range(times):
        images = F.conv2d(F.pad(images, (1, 1, 1, 1), mode="reflect"), kernel, groups=3)
    return images.round().byte().permute(0, 2, 3, 1)


def noisy(pixels: Tensor, spread: float) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(pixels.shape, generator=generator) * spread
    return (pixels + noise).clamp(0, 255).round().byte()


def tinted(pixels: Tensor, amount: float) -> Tensor:
    return (pixels + torch.tensor([amount, 0, -amount])).clamp(0, 255).round().byte()


def darker_only(pixels: Tensor, share: float) -> Tensor:
    """Mode dropping: as many images, all from the darkest share."""
    order = pixels.float().mean((1, 2, 3)).argsort()
    kept = order[: int(share * len(order))]
    return pixels[kept[torch.arange(len(pixels)) % len(kept)]]


@pytest.fixture(scope="module")
def reference() -> Tensor:
    return PyramidExtractor()(scenes(300, seed=1))


@pytest.mark.parametrize(
    ("damage", "amounts"),
    [
        (blurred, [0, 1, 3, 9]),
        (noisy, [0, 4, 16, 64]),
        (tinted, [0, 16, 32, 64]),
        (darker_only, [1.0, 0.6, 0.3, 0.05]),
    ],
)
def test_more_damage_is_more_distance(
    damage: object, amounts: list[float], reference: Tensor
) -> None:
    fresh = scenes(300, seed=2)
    extractor = PyramidExtractor()
    sets = [extractor(damage(fresh, amount)) for amount in amounts]  # type: ignore[operator]
    frechet = [frechet_estimate(features, reference).value for features in sets]
    energy = [energy_distance(features, reference) for features in sets]
    for values in (frechet, energy):
        assert values == sorted(values)
    assert frechet[-1] > 1.5 * frechet[0]


def test_every_part_and_every_number_varies(reference: Tensor) -> None:
    variances = reference.var(0)
    parts = {
        "layout": variances[:96],
        "orientation": variances[96:224],
        "residual": variances[224:248],
        "relations": variances[248:],
    }
    for name, part in parts.items():
        assert float(part.sum() / variances.sum()) > 0.02, name
    assert float(variances.min()) > 0


@pytest.mark.parametrize("processes", [2, 3, 5])
def test_shares_of_several_processes_are_the_whole(processes: int) -> None:
    pixels = scenes(11, seed=3)
    extractor = PyramidExtractor()
    whole = extract_features(pixels, extractor)
    shares = []
    for rank in range(processes):
        mine = list(range(rank, len(pixels), processes))
        collector = FeatureCollector(extractor, "array")
        collector.add(mine, pixels[mine])
        shares.append(collector.features())
    merged = merge_features(shares)
    assert merged.indices == tuple(range(11))
    assert merged.images_hash == whole.images_hash
    torch.testing.assert_close(merged.values, whole.values, atol=1e-5, rtol=1e-5)


def test_any_size_is_brought_to_the_same_space() -> None:
    large = scenes(3, seed=4, size=128)
    half = F.avg_pool2d(large.permute(0, 3, 1, 2).float(), 2).round().byte().permute(0, 2, 3, 1)
    extractor = PyramidExtractor()
    difference = (extractor(large) - extractor(half)).norm(dim=1)
    other = (extractor(large) - extractor(half[[1, 2, 0]])).norm(dim=1)
    assert float(difference.max()) < 0.35 * float(other.min())


@pytest.mark.parametrize(
    ("pixels", "named"),
    [
        (torch.zeros(2, 31, 31, 3, dtype=torch.uint8), r"32 .*31"),
        (torch.zeros(2, 64, 48, 3, dtype=torch.uint8), r"\[2, 64, 48, 3\]"),
        (torch.zeros(2, 3, 64, 64, dtype=torch.uint8), r"\[2, 3, 64, 64\]"),
        (torch.zeros(2, 64, 64, 3), r"uint8.*float32"),
    ],
)
def test_other_shapes_and_types_are_refused(pixels: Tensor, named: str) -> None:
    with pytest.raises(UserError, match=named):
        PyramidExtractor()(pixels)


class TestLatents:
    def test_are_flattened_or_averaged_over_cells(self) -> None:
        latents = torch.randn(5, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        plain = LatentExtractor((4, 8, 8), "sha256:f")
        assert plain.dimension == 256
        assert torch.equal(plain(latents), latents.flatten(1))
        pooled = LatentExtractor((4, 8, 8), "sha256:f", pool=4)
        assert pooled.dimension == 16
        assert pooled(latents)[2, 5].item() == pytest.approx(latents[2, 1, :4, 4:].mean().item())
        assert plain.name != pooled.name

    def test_of_pixels_go_through_the_encoder(self) -> None:
        def encode(pixels: Tensor) -> Tensor:
            return F.avg_pool2d(pixels.permute(0, 3, 1, 2).float(), 8)

        extractor = LatentExtractor((3, 8, 8), "sha256:f", encode=encode)
        pixels = scenes(4, seed=0)
        assert torch.equal(extractor(pixels), encode(pixels).flatten(1))

    def test_other_shapes_are_refused(self) -> None:
        extractor = LatentExtractor((4, 8, 8), "sha256:f")
        for wrong in (torch.zeros(2, 4, 4, 4), torch.zeros(2, 64, 64, 3, dtype=torch.uint8)):
            shapes = rf"{re.escape('[4, 8, 8]')}.*{re.escape(str(list(wrong.shape[1:])))}"
            with pytest.raises(UserError, match=shapes):
                extractor(wrong)
        with pytest.raises(UserError, match=r"8 x 8 .*cells of 3"):
            LatentExtractor((4, 8, 8), "sha256:f", pool=3)
