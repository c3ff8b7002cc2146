"""The command line: exit codes, one sentence for each mistake, and the demo from end to end."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from autoencoder.portraits import draw_portrait
from latentddm.cli import main

TINY = [
    "samples=8",
    "steps=[1,2]",
    "size=32",
    "workers=0",
    "autoencoder.start=null",
    "autoencoder.network={widths: [8,8,8], blocks: 1, latent_channels: 3, norm_groups: 4}",
    "autoencoder.loop.images=16",
    "generator.network={channels: 16, multipliers: [1], blocks: 1, attention_levels: [0]}",
    "generator.loop.images=32",
    "generator.loop.batch_size=16",
]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of loose JPEG and PNG files, two of which cannot be used."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(66):
        suffix = "png" if index % 2 else "jpg"
        Image.fromarray(draw_portrait(index, 40)[0]).save(folder / f"{index:03d}.{suffix}")
    (folder / "torn.jpg").write_bytes((folder / "000.jpg").read_bytes()[:200])
    Image.new("RGB", (1, 1)).save(folder / "dot.png")
    return folder


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One thread rounds alike, whether another training is still running or not."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_demo_runs_every_stage_on_a_folder_of_loose_images(
    pictures: Path, tmp_path: Path, one_thread: None
) -> None:
    output = tmp_path / "demo"
    assert main(["demo", "--images", str(pictures), "--output", str(output), *TINY]) == 0
    report = json.loads((output / "report.json").read_text())
    assert report["source"]["images"] == 66
    assert {entry["key"] for entry in report["source"]["unreadable"]} == {"torn.jpg", "dot.png"}
    assert [method["key"] for method in report["methods"]] == ["ddm", "plain"]
    for method in report["methods"]:
        assert [result["steps"] for result in method["results"]] == [1, 2]
        for result in method["results"]:
            assert np.isfinite(result["frechet"]["value"])
            assert (output / result["picture"]).is_file()
    assert "patch_size: 8\n" in (output / "ddm" / "config.yaml").read_text()  # all of 8 x 8 latents
    page = (output / "report.html").read_text()
    assert "torn.jpg" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    # Run again: everything is done already, and the numbers are the same.
    assert main(["demo", "--images", str(pictures), "--output", str(output), *TINY]) == 0
    again = json.loads((output / "report.json").read_text())
    assert [m["results"][0]["energy"] for m in again["methods"]] == [
        m["results"][0]["energy"] for m in report["methods"]
    ]


def refused(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 2) -> str:
    """The one sentence with which a command is refused."""
    assert main(arguments) == code
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("latentddm: ")
    assert "Traceback" not in said
    return said


def test_wrong_sources_are_refused_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = str(tmp_path / "out")
    missing = str(tmp_path / "nowhere")
    assert "nowhere does not exist" in refused(
        capsys, "demo", "--images", missing, "--output", output
    )
    empty = tmp_path / "empty"
    empty.mkdir()
    assert str(empty) in refused(capsys, "demo", "--images", str(empty), "--output", output)
    assert not Path(output).exists()
    few = tmp_path / "few"
    few.mkdir()
    Image.new("RGB", (32, 32)).save(few / "a.png")
    assert "needs at least 64" in refused(capsys, "demo", "--images", str(few), "--output", output)


def test_an_output_folder_that_holds_something_else_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    said = refused(capsys, "demo", "--output", str(tmp_path))
    assert "already holds something else" in said
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_misspelt_key_names_the_nearest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(capsys, "demo", "--output", str(tmp_path / "out"), "generator.loop.imagse=5")
    assert "'generator.loop.imagse'; did you mean 'images'" in said
    path = tmp_path / "train.yaml"
    path.write_text("loop: {images: 8}\noptimiser: {learning_rate: 1}\n")
    assert "'optimiser'; did you mean 'optimizer'" in refused(capsys, "train", str(path))


def test_a_full_disk_ends_with_exit_code_one_and_nothing_half_written(
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    output = tmp_path / "demo"
    arguments = ("demo", "--images", str(pictures), "--output", str(output), *TINY)
    assert "The disk is full while writing" in refused(capsys, *arguments, code=1)
    assert not any(output.iterdir())


@pytest.mark.parametrize("verb", ["train", "train-autoencoder"])
def test_a_config_that_does_not_exist_is_named(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "nothing.yaml does not exist" in refused(capsys, verb, "nothing.yaml")


def test_a_dry_run_of_an_autoencoder_touches_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    config = "portraits_autoencoder.yaml"
    assert main(["train-autoencoder", config, f"output={output}", "--dry-run"]) == 0
    assert "parameters" in capsys.readouterr().out
    assert not output.exists()
