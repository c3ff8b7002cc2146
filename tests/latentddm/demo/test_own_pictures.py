"""The demo on somebody's own pictures: sized by minutes, the same work again, clear refusals."""

from __future__ import annotations

import html
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from messages import assert_names
from PIL import Image
from tiny_autoencoders import grey_pixels, save_grey

from latentddm.cli import main
from latentddm.cli.demo import _preset
from latentddm.demo import parallel_runs, plan, preparation, speed
from latentddm.demo.reference import MOST_LATENT_FEATURES, latent_pool
from latentddm.engine.config import load_config
from latentddm.inference.best_settings import write_best_settings
from latentddm.inference.generator import Generator
from latentddm.inference.settings import SamplingConfig
from latentddm.training.config import TrainConfig

CHANNELS = 32
SMALL = [
    "size=32",
    "workers=0",
    "steps=[1,2]",
    "generator.sampler={xi_scale: [0.5, 0.9]}",
    "generator.loop.batch_size=8",
    "generator.network.embedding_width=16",
    "generator.loop.trackers=[]",
]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own") / "holiday"
    folder.mkdir()
    for index, pixels in enumerate(grey_pixels(70, 32).numpy()):
        Image.fromarray(pixels).save(folder / f"{index:03d}.png")
    return folder


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_grey(tmp_path_factory.mktemp("pretrained") / "vae")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Least work, in this process and on one thread."""
    monkeypatch.setattr(plan, "FEWEST_BATCHES", 2)
    monkeypatch.setattr(plan, "WIDTHS", ((CHANNELS, 0),))
    monkeypatch.setattr(speed, "WIDTHS", ((CHANNELS, 0),))
    monkeypatch.setattr(speed, "SECONDS", 0.01)
    monkeypatch.setattr(parallel_runs, "available_cores", lambda: 1)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def command(pictures: Path, pretrained: Path, output: Path, minutes: str = "0.01") -> list[str]:
    options = ["--images", str(pictures), "--autoencoder", str(pretrained), "--output", str(output)]
    return ["demo", *options, "--minutes", minutes, *SMALL]


def results(output: Path) -> list[dict[str, Any]]:
    report = json.loads((output / "report.json").read_text())
    return [result for method in report["methods"] for result in method["results"]]


def test_a_planned_demo_does_the_same_work_again(
    pictures: Path,
    pretrained: Path,
    tmp_path: Path,
    quick: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert main(command(pictures, pretrained, first)) == 0
    check_report(json.loads((first / "report.json").read_text()), first, pretrained)

    def forbid(*arguments: object) -> None:
        raise AssertionError("the plan of the folder was not taken")

    monkeypatch.setattr(preparation, "_decide", forbid)
    # Killed after the plan was written: everything is done again, by that plan.
    second.mkdir()
    shutil.copy(first / "config.yaml", second)
    assert main(command(pictures, pretrained, second)) == 0
    assert results(second) == results(first)
    # What compare.py may have found since is not what the report's labels name.
    for name, phase in (("ddm", 1), ("plain", 0)):
        pale = SamplingConfig(steps=1, noise_scale=0.5)
        write_best_settings(second / name, phase, "a test", {1: pale})
    assert main(command(pictures, pretrained, second)) == 0
    assert results(second) == results(first)
    # Other minutes are another demo.
    assert main(command(pictures, pretrained, first, minutes="7")) == 2
    assert_names(capsys.readouterr().err.splitlines()[-1], str(first), "minutes", "another output")


def check_report(report: dict[str, Any], output: Path, pretrained: Path) -> None:
    """The parts of the report that own pictures need."""
    sizes = report["settings"]["plan"]["sizes"]
    assert sizes["channels"] == CHANNELS
    assert report["source"]["images"] == sizes["pictures"] == 70
    assert report["autoencoder"]["images_seen"] == 0
    assert report["autoencoder"]["reference"] == str(pretrained)
    assert report["methods"][0]["label"].endswith("ξ × 0.5 to 0.9)")
    assert report["methods"][0]["images_seen"] == sizes["plain_images"] + sizes["ddm_images"]
    for result in results(output):
        for name in ("frechet", "energy", "original_frechet", "original_energy"):
            assert np.isfinite(result[name]["value"])
            assert np.isfinite(report["floor"][name])
            assert name in report["protocol"]
    # As many draws as pictures that are left beside the reference, of which the floor is.
    others = 70 - report["settings"]["reference"]
    assert report["floor"]["what"].startswith(f"{min(others, sizes['samples'])} other images")
    # Nearly grey reconstructions are far from the originals, however good the generator.
    assert report["floor"]["original_frechet"] > 2 * report["floor"]["frechet"]
    shown = report["side_by_side"]
    edge = 4 * 32 + 3 * 2  # four columns with lines of two pixels between them
    for name in ("originals", "reconstructions", "draws"):
        assert Image.open(output / shown[name]).size == (edge, edge)
    assert shown["steps"] == 1
    page = html.unescape((output / "report.html").read_text())
    assert str(pretrained) in page
    # Its command for a longer training is one of this network.
    (command,) = re.findall(r"latentddm (train .*)</pre>", page)
    _, config, *overrides = shlex.split(command)
    longer = load_config(TrainConfig, Path(config), overrides)
    assert [phase.images for phase in longer.phases] == [
        10 * sizes["plain_images"],
        10 * sizes["ddm_images"],
    ]
    # The report's last commands draw as the report did.
    ddm, plain = (Generator.load(output / name).settings(1) for name in ("ddm", "plain"))
    assert (ddm.xi_scale, plain.xi_scale) == ((0.5,), 1.0)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["demo", *arguments]) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--autoencoder", "gone"], ["autoencoder gone ", "check the path"]),
        (["--autoencoder", "VAE", "size=33"], ["size is 33", "multiple of 2", "choose 32"]),
        (["--autoencoder", "VAE", "--minutes", "0"], ["minutes must be above 0", "give 5"]),
        (["--autoencoder", "VAE", "--minutes", "-1"], ["minutes must be above 0", "-1"]),
        (["--autoencoder", "VAE", "--minutes", "nan"], ["'minutes'", "must be a number"]),
        (["--autoencoder", "VAE", "--minutes", "soon"], ["--minutes", "'soon'"]),
        (["--autoencoder", "VAE", "samples=9"], ["samples", "minutes=null"]),
        (["--autoencoder", "VAE", "generator.sampler.solver=heun"], ["heun", "unipc"]),
        (
            ["--autoencoder", "VAE", "generator.sampler.grid=log"],
            ["sampler.grid", "'log'", "log_snr"],
        ),
        (
            ["--autoencoder", "VAE", "generator.sampler.xi_scale=[1.0,-1.0]"],
            ["xi_scale", "two numbers"],
        ),
        (["--images", "FEW", "--autoencoder", "VAE"], ["3 readable", "at least 64"]),
        (["--images", "BROKEN", "--autoencoder", "VAE"], ["no readable image", "000.png"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_a_mistake_is_one_sentence_before_anything_is_written(
    arguments: list[str],
    named: list[str],
    pictures: Path,
    pretrained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    few, broken = tmp_path / "few", tmp_path / "broken"
    for folder in (few, broken):
        folder.mkdir()
    for index in range(3):
        shutil.copy(pictures / f"{index:03d}.png", few)
    for index in range(130):
        (broken / f"{index:03d}.png").write_bytes(b"no picture")
    places = {"VAE": str(pretrained), "FEW": str(few), "BROKEN": str(broken)}
    given = [places.get(argument, argument) for argument in arguments]
    images = [] if "--images" in given else ["--images", str(pictures)]
    output = tmp_path / "out"
    changes = [] if any(a.startswith("size=") for a in given) else ["size=32"]
    message = refused(capsys, *images, "--output", str(output), *given, *changes, "workers=0")
    assert_names(message, *named)
    assert not output.exists()


@pytest.mark.parametrize("images", ["portraits/", "portraits_of_cats", "my/portraits"])
def test_a_folder_called_like_the_portraits_is_a_folder(images: str) -> None:
    assert _preset([f"images={images}"]) == "demo_own.yaml"
    assert _preset(["images=portraits:40"]) == _preset(["images='portraits'"]) == "demo.yaml"


@pytest.mark.parametrize(
    ("shape", "pool"), [((6, 4, 4), 1), ((32, 8, 8), 2), ((4, 16, 16), 2), ((1024, 3, 3), 3)]
)
def test_latents_of_many_numbers_are_compared_by_means_of_cells(
    shape: tuple[int, int, int], pool: int
) -> None:
    """A Fréchet distance of 2,048 features takes half a minute; the portraits' 96 stay whole."""
    assert latent_pool(shape) == pool
    features = shape[0] * (shape[1] // pool) * (shape[2] // pool)
    assert features <= MOST_LATENT_FEATURES or pool == shape[1]
