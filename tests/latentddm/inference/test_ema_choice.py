"""The average that samples are drawn with is the one that was asked for."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_generator_training import config

from latentddm.cli import main
from latentddm.engine.errors import UserError
from latentddm.engine.run import RunFolder
from latentddm.inference.generator import Generator
from latentddm.training.generator import train


@pytest.fixture(scope="module")
def run(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return train(config(tiny_store, tmp_path_factory.mktemp("ema") / "run", images=128))


def weights(run: RunFolder, ema: str | None = None) -> dict[str, torch.Tensor]:
    return Generator.load(run.path, ema=ema).network.state_dict()


def test_widths_that_were_tracked_are_there_and_the_first_is_the_default(run: RunFolder) -> None:
    checkpoint = sorted(run.checkpoints.iterdir())[-1]
    for choice, name in ((None, "ema"), ("0.10", "ema"), ("0.05", "ema_0.05")):
        saved = load_file(checkpoint / f"{name}.safetensors")
        loaded = weights(run, choice)
        assert all(torch.equal(saved[key], loaded[key]) for key in saved), choice


def test_another_width_is_made_by_the_verb_and_then_sampled_with(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=r"no average of width 0\.07 .*latentddm ema .* 0\.07"):
        weights(run, "0.07")
    assert main(["ema", str(run.path), "--width", "0.07"]) == 0
    assert "sample with --ema 0.07" in capsys.readouterr().out
    made = weights(run, "0.07")
    wide, narrow = weights(run, "0.10"), weights(run, "0.05")
    key = "first.weight" if "first.weight" in made else next(iter(made))
    assert not torch.equal(made[key], wide[key])
    to_both = (made[key] - wide[key]).norm() + (made[key] - narrow[key]).norm()
    assert to_both < 1.5 * (wide[key] - narrow[key]).norm()  # it lies between them


def test_a_reconstructed_average_is_of_the_newest_weights_or_refused(
    run: RunFolder, tiny_store: Path, tmp_path: Path
) -> None:
    """Else a run that was trained on is sampled with weights of before, in silence."""
    longer = RunFolder(Path(shutil.copytree(run.path, tmp_path / "run")))
    assert main(["ema", str(longer.path), "--width", "0.08"]) == 0
    weights(longer, "0.08")
    with pytest.raises(UserError, match=r"newest weights .* not of those at 112 images"):
        Generator.load(longer.path, images=112, ema="0.08")
    train(config(tiny_store, longer.path, images=192))
    with pytest.raises(UserError, match=r"trained since; reconstruct it again"):
        weights(longer, "0.08")
    assert main(["ema", str(longer.path), "--width", "0.08"]) == 0
    weights(longer, "0.08")


def test_a_choice_that_is_no_average_is_one_sentence(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"wide .*ema\.widths"):
        weights(run, "wide")
    assert main(["ema", str(run.path), "--width", "0.9"]) == 2
