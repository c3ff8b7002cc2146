"""Evaluation of an autoencoder: right values with their protocol, no silently lost image."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from autoencoder.metrics import psnr, ssim
from autoencoder.models.base import Autoencoder
from latentddm.engine.errors import UserError
from latentddm.evaluation import evaluate_images
from latentddm.evaluation.reconstruction import ReconstructionOptions, evaluate_autoencoder
from latentddm.report.reconstruction import write_reconstruction_report

SIZE, FACTOR = 32, 4
OPTIONS = ReconstructionOptions(metrics=("psnr", "ssim", "frechet"), size=SIZE, batch_size=4)


class _Pooling(nn.Module):
    """Encoder to the mean colours of blocks; the decoder repeats them."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def encode(self, images: torch.Tensor, return_dict: bool) -> tuple[torch.Tensor]:
        return (nn.functional.avg_pool2d(images, FACTOR),)


class PoolingAutoencoder(Autoencoder):
    def __init__(self) -> None:
        super().__init__(
            _Pooling(),
            reference="pooling",
            fingerprint="sha256:0",
            latent_channels=3,
            factor=FACTOR,
        )

    def _decode(self, latents: torch.Tensor) -> torch.Tensor:
        return latents.repeat_interleave(FACTOR, 2).repeat_interleave(FACTOR, 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for index in range(10):
        pixels = random.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((SIZE, SIZE)).save(path / f"{index}.png")
    return path


def test_values_are_means_over_all_images_with_their_protocol(folder: Path) -> None:
    measured = evaluate_autoencoder(PoolingAutoencoder(), str(folder), OPTIONS)
    pixels = torch.from_numpy(
        np.stack([np.asarray(Image.open(folder / f"{index}.png")) for index in range(10)])
    )
    expected = psnr(pixels, PoolingAutoencoder().reconstruct(pixels))
    result = measured.results["psnr"]
    assert result.value == pytest.approx(float(expected.mean()))
    assert result.low < result.value < result.high
    assert (result.protocol.n, result.protocol.size) == (10, SIZE)
    decoded = PoolingAutoencoder().reconstruct(pixels)
    assert measured.results["ssim"].value == pytest.approx(float(ssim(pixels, decoded).mean()))
    distance = evaluate_images(decoded, pixels, ["frechet"])["frechet"]
    assert measured.results["frechet"] - distance == pytest.approx(0, abs=1e-3 * distance.value)
    assert list(measured.results) == ["psnr", "ssim", "frechet"]

    latents = PoolingAutoencoder().encode(pixels)
    np.testing.assert_allclose(measured.latents.mean, latents.mean((0, 2, 3)), rtol=1e-4)
    assert np.array_equal(measured.originals, pixels[:8].numpy())
    # Neither the value nor the hash of the images depends on the batch size.
    other = ReconstructionOptions(metrics=("psnr",), size=SIZE, batch_size=3)
    again = evaluate_autoencoder(PoolingAutoencoder(), str(folder), other).results["psnr"]
    assert again.value == pytest.approx(result.value)
    assert again.protocol == result.protocol


def test_unreadable_images_are_counted_and_named(folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "torn.png").write_bytes((folder / "0.png").read_bytes()[:100])
    measured = evaluate_autoencoder(PoolingAutoencoder(), str(tmp_path), OPTIONS)
    assert measured.results["psnr"].protocol.n == 10
    assert len(measured.unreadable) == 1
    assert "torn.png" in measured.unreadable[0]


def test_the_folder_holds_json_markdown_and_images_and_no_other_folder_is_touched(
    folder: Path, tmp_path: Path
) -> None:
    measured = evaluate_autoencoder(PoolingAutoencoder(), str(folder), OPTIONS)
    for _ in range(2):  # a second evaluation takes the place of the first
        write_reconstruction_report(tmp_path / "quality", measured)
    values = json.loads((tmp_path / "quality" / "evaluation.json").read_text())
    assert values["results"]["psnr"]["value"] == measured.results["psnr"].value
    words = (tmp_path / "quality" / "evaluation.md").read_text()
    assert f"| psnr | {measured.results['psnr'].value:.4g} |" in words
    grid = np.asarray(Image.open(tmp_path / "quality" / "reconstructions.png")).astype(int)
    original, decoded, error = (
        grid[row * (SIZE + 2) : row * (SIZE + 2) + SIZE, :SIZE] for row in range(3)
    )
    assert np.array_equal(original, measured.originals[0])
    assert np.array_equal(error, np.minimum(4 * np.abs(original - decoded), 255))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="mine"):
        write_reconstruction_report(tmp_path / "mine", measured)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"metrics": ("psnr", "beauty")}, r"'beauty'.*psnr, ssim, lpips, rfid, frechet"),
        ({"size": 30}, r"size is 30, .*multiple of 4"),
        ({"size": 64}, r"\.png .*32 x 32 .*64"),
        ({"num": 1}, r"num is 1"),
        ({"batch_size": 0}, r"batch size .*0"),
    ],
)
def test_a_wrong_request_is_one_sentence(folder: Path, options: dict, named: str) -> None:
    def ask() -> None:
        chosen = ReconstructionOptions(**{"metrics": ("psnr",), "size": SIZE, **options})
        evaluate_autoencoder(PoolingAutoencoder(), str(folder), chosen)

    with pytest.raises(UserError, match=named) as caught:
        ask()
    assert "\n" not in str(caught.value)
