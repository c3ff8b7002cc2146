"""Comparison of folders: no silent mixture of sizes, no silently skipped image."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from autoencoder.images import Preprocessing, open_source
from latentddm.cli import main
from latentddm.engine.errors import UserError
from latentddm.evaluation import PyramidExtractor, evaluate_images, folders
from latentddm.evaluation.folders import EvaluationOptions, evaluate_folders
from latentddm.evaluation.sources import extract_from_source


def random_images(count: int, seed: int, size: int = 32) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    images = [Image.fromarray(image).resize((size, size)) for image in coarse]
    return np.stack([np.asarray(image) for image in images])


def write(folder: Path, pixels: np.ndarray) -> str:
    folder.mkdir()
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{number:04d}.png")
    return str(folder)


@pytest.fixture
def samples(tmp_path: Path) -> str:
    return write(tmp_path / "samples", random_images(12, 1))


@pytest.fixture
def reference(tmp_path: Path) -> str:
    return write(tmp_path / "reference", random_images(15, 2))


def test_folders_give_what_their_arrays_give(samples: str, reference: str) -> None:
    evaluation = evaluate_folders(samples, reference, EvaluationOptions(batch_size=5))
    arrays = evaluate_images(random_images(12, 1), random_images(15, 2))
    assert list(evaluation.results) == ["frechet", "energy"]
    for name, result in evaluation.results.items():
        assert result - arrays[name] == pytest.approx(0, abs=1e-4)
        assert result.protocol.reference == reference
    assert json.loads(json.dumps(evaluation.to_json()))["unreadable"] == {
        "images": [],
        "reference": [],
    }


def test_a_larger_reference_is_reduced_and_a_smaller_one_refused(
    samples: str, tmp_path: Path
) -> None:
    large = write(tmp_path / "large", random_images(9, 3, size=80))
    assert evaluate_folders(samples, large).results["energy"].protocol.size == 32
    with pytest.raises(UserError, match=r"0000\.png in .*samples .*32 x 32.*80"):
        evaluate_folders(large, samples)
    small = evaluate_folders(large, samples, EvaluationOptions(size=32))
    assert small.results["energy"].protocol.size == 32


def test_images_of_several_sizes_are_refused_unless_a_size_is_named(
    samples: str, reference: str
) -> None:
    Image.fromarray(random_images(1, 5, size=64)[0]).save(Path(samples) / "larger.png")
    with pytest.raises(UserError, match=r"larger\.png .*64 x 64 .*32 x 32.*name the size"):
        evaluate_folders(samples, reference)
    about = (
        evaluate_folders(samples, reference, EvaluationOptions(size=32)).results["energy"].protocol
    )
    assert (about.n, about.size) == (13, 32)


def test_an_oblong_image_is_refused(samples: str, reference: str) -> None:
    Image.new("RGB", (40, 32)).save(Path(samples) / "0000.png")
    with pytest.raises(UserError, match=r"0000\.png .*40 x 32 .*name the size"):
        evaluate_folders(samples, reference)


def test_unreadable_images_are_left_out_counted_and_listed(
    samples: str, reference: str, caplog: pytest.LogCaptureFixture
) -> None:
    (Path(samples) / "0000.png").write_bytes(b"not an image")
    (Path(samples) / "0007.png").write_bytes(b"")
    with caplog.at_level(logging.WARNING, logger="latentddm"):
        evaluation = evaluate_folders(samples, reference)
    assert evaluation.results["energy"].protocol.n == 10
    assert [text.split(":")[0] for text in evaluation.unreadable["images"]] == [
        "0000.png",
        "0007.png",
    ]
    assert "2 of 12" in caplog.text
    assert "0007.png" in caplog.text


def test_num_draws_as_many_from_each_side_and_depends_on_the_seed(
    samples: str, reference: str
) -> None:
    def run(seed: int) -> tuple[int, int, str]:
        options = EvaluationOptions(num=6, seed=seed)
        about = evaluate_folders(samples, reference, options).results["energy"].protocol
        return about.n, about.n_reference, about.reference_hash

    assert run(0)[:2] == (6, 6)
    assert run(0) == run(0)
    assert run(0)[2] != run(1)[2]
    with pytest.raises(UserError, match=r"num .*1"):
        EvaluationOptions(num=1)


def test_worker_processes_change_nothing(samples: str, reference: str) -> None:
    alone = evaluate_folders(samples, reference).results["energy"]
    helped = evaluate_folders(samples, reference, EvaluationOptions(workers=2)).results["energy"]
    assert helped == alone


def test_wrong_requests_are_one_sentence_before_any_feature_is_extracted(
    samples: str, reference: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_late(*_: object, **__: object) -> None:
        raise AssertionError("images were read first")

    monkeypatch.setattr(folders, "extract_from_source", too_late)
    for options, named in [
        (EvaluationOptions(metrics=["psnr"]), r"'psnr'.*frechet.*lpips"),
        (EvaluationOptions(features="vgg"), r"'vgg'.*pyramid-v2.*latent:"),
        (EvaluationOptions(metrics=["fid"], features="pyramid-v2"), r"fid .*pyramid-v2.*frechet"),
        (EvaluationOptions(metrics=["kid"], features="pyramid-v2"), r"kid .*pyramid-v2.*kernel"),
    ]:
        with pytest.raises(UserError, match=named) as caught:
            evaluate_folders(samples, reference, options)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="nowhere"):
        evaluate_folders(samples, "nowhere")


@pytest.mark.slow  # the attribute classifier is fitted first, on portraits drawn here
def test_a_reference_without_a_readable_image_is_named_as_such(
    samples: str, tmp_path: Path
) -> None:
    (tmp_path / "broken").mkdir()
    for number in range(3):
        (tmp_path / "broken" / f"{number}.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="one side has 0"):
        evaluate_folders(samples, str(tmp_path / "broken"), EvaluationOptions(size=32))


def test_a_wrong_output_or_size_is_refused_before_the_measuring(
    samples: str, reference: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    request = ["evaluate", samples, "--reference", reference]
    assert main([*request, "--output", str(tmp_path)]) == 2
    assert "is a folder; name a file in it" in capsys.readouterr().err
    with pytest.raises(UserError, match="lpips needs images of at least 64"):
        evaluate_folders(samples, reference, EvaluationOptions(metrics=["lpips"]))


def test_portraits_are_compared_by_their_attributes_too() -> None:
    results = evaluate_folders("portraits:24:1", "portraits:24", EvaluationOptions(size=64)).results
    assert {"frechet", "energy", "attributes", "attributes/glasses"} <= set(results)
    assert 0 < results["attributes"].value < 0.4
    parts = [r.value for name, r in results.items() if name.startswith("attributes/")]
    assert results["attributes"].value == pytest.approx(np.mean(parts))
    same = evaluate_folders("portraits:24", "portraits:24", EvaluationOptions(size=64)).results
    assert same["attributes"].value == 0


def _one_of_two_processes(rank: int, samples: str, reference: str, output: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{output}/meeting", rank=rank, world_size=2
    )
    result = evaluate_folders(samples, reference)
    (Path(output) / f"{rank}.json").write_text(json.dumps(result.to_json()))
    torch.distributed.destroy_process_group()


@pytest.mark.slow  # two new interpreters import torch
def test_two_processes_find_what_one_finds(samples: str, reference: str, tmp_path: Path) -> None:
    (Path(samples) / "0003.png").write_bytes(b"not an image")
    torch.multiprocessing.spawn(
        _one_of_two_processes, (samples, reference, str(tmp_path)), nprocs=2
    )
    alone = evaluate_folders(samples, reference)
    for rank in range(2):
        shared = json.loads((tmp_path / f"{rank}.json").read_text())
        assert shared["unreadable"] == alone.unreadable
        for name, result in alone.results.items():
            assert shared["results"][name]["protocol"] == result.to_json()["protocol"]
            assert shared["results"][name]["value"] == pytest.approx(result.value, abs=1e-4)


def test_every_image_is_read_once_for_several_extractors(
    samples: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, read = open_source(samples), []
    load = source.load
    monkeypatch.setattr(source, "load", lambda index: read.append(index) or load(index))
    extractors = {"pyramid": PyramidExtractor(), "pixels": FirstPixel()}
    sets, _ = extract_from_source(source, Preprocessing(size=32), extractors, batch_size=5)
    assert read == list(range(12))
    pixels = random_images(12, 1)
    assert torch.equal(sets["pixels"].values, torch.from_numpy(pixels[:, 0, 0]).float())
    assert sets["pyramid"].images_hash == sets["pixels"].images_hash
    assert len(sets["pyramid"]) == 12


class FirstPixel:
    name, dimension, hash, resize = "first-pixel", 3, "sha256:constant", "none"

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels[:, 0, 0].float()
