"""The command line: the demo from end to end, dry runs, and refusals that write nothing."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from messages import assert_names
from PIL import Image

from autoencoder.portraits import draw_portrait
from latentddm.cli import main
from latentddm.cli.parser import build_parser
from latentddm.engine.errors import UserError

TINY = [
    "minutes=null",
    "pretrained=null",
    "samples=8",
    "steps=[1,2]",
    "size=32",
    "workers=0",
    "autoencoder.start=null",
    "autoencoder.network={widths: [8,8,8], blocks: 1, latent_channels: 3, norm_groups: 4}",
    "autoencoder.loop.images=16",
    "generator.network={channels: 32, multipliers: [1], blocks: 1, attention_levels: [0]}",
    "generator.phases.0.images=16",
    "generator.phases.1.images=16",
    "generator.loop.batch_size=16",
]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of 66 JPEG and PNG files, and two unusable ones."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(66):
        suffix = "png" if index % 2 else "jpg"
        Image.fromarray(draw_portrait(index, 40)[0]).save(folder / f"{index:03d}.{suffix}")
    (folder / "truncated.jpg").write_bytes((folder / "000.jpg").read_bytes()[:200])
    Image.new("RGB", (1, 1)).save(folder / "dot.png")
    return folder


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One thread: sums do not depend on the number of threads that are free."""
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
    assert {entry["key"] for entry in report["source"]["unreadable"]} == {
        "truncated.jpg",
        "dot.png",
    }
    assert [method["key"] for method in report["methods"]] == ["ddm", "plain"]
    for method in report["methods"]:
        assert [result["steps"] for result in method["results"]] == [1, 2]
        for result in method["results"]:
            assert np.isfinite(result["frechet"]["value"])
            assert (output / result["picture"]).is_file()
    assert "patch_size: 2\n" in (output / "ddm" / "config.yaml").read_text()  # of 8 x 8 latents
    page = (output / "report.html").read_text()
    assert "truncated.jpg" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    # A second run finds every stage done, and its numbers are the same.
    assert main(["demo", "--images", str(pictures), "--output", str(output), *TINY]) == 0
    again = json.loads((output / "report.json").read_text())
    assert [m["results"][0]["energy"] for m in again["methods"]] == [
        m["results"][0]["energy"] for m in report["methods"]
    ]


def refused(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 2) -> str:
    """The error message with which a command ends."""
    assert main(arguments) == code
    stderr = capsys.readouterr().err
    assert "Traceback" not in stderr
    return stderr.strip().splitlines()[-1]


def test_unusable_sources_are_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = str(tmp_path / "out")
    empty, few = tmp_path / "empty", tmp_path / "few"
    empty.mkdir()
    message = refused(capsys, "demo", "--images", str(empty), "--output", output)
    assert_names(message, str(empty), "no image", "it is empty", "give a folder")
    assert not Path(output).exists()
    few.mkdir()
    Image.new("RGB", (32, 32)).save(few / "a.png")
    message = refused(capsys, "demo", "--images", str(few), "--output", output)
    assert_names(message, str(few), "1 readable", "at least 64")


def test_an_output_folder_that_holds_something_else_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    message = refused(capsys, "demo", "--output", str(tmp_path))
    assert_names(message, str(tmp_path), "another output folder")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_misspelt_key_is_named_with_its_file_and_the_nearest_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = str(tmp_path / "out")
    message = refused(capsys, "demo", "--output", output, "generator.loop.batchsize=5")
    assert_names(message, "demo.yaml", "'generator.loop.batchsize'", "'batch_size'")
    path = tmp_path / "train.yaml"
    path.write_text("phases: [{images: 8, optimiser: {learning_rate: 1}}]\n")
    message = refused(capsys, "train", str(path))
    assert_names(message, str(path), "'phases.0.optimiser'", "'optimizer'")


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
    assert_names(refused(capsys, *arguments, code=1), "disk is full", str(output), "free space")
    assert not any(output.iterdir())


def test_changes_to_a_config_may_stand_behind_options() -> None:
    parsed = build_parser().parse_args(["train", "a.yaml", "b=1", "--dry-run", "c.d=2", "--json"])
    assert parsed.overrides == ["b=1", "c.d=2"]
    assert parsed.dry_run
    with pytest.raises(UserError, match="unrecognized arguments: --c=2 d"):
        build_parser().parse_args(["train", "a.yaml", "--dry-run", "--c=2", "d"])


def test_a_dry_run_of_an_autoencoder_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    config = "portraits_autoencoder.yaml"
    assert main(["train-autoencoder", config, f"output={output}", "--dry-run"]) == 0
    assert "parameters" in capsys.readouterr().out
    assert not output.exists()
