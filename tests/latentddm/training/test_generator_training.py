"""Training: what is resumed equals what was never stopped, and a run refuses what does not fit."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from latentddm.engine.checkpoint import newest_checkpoint
from latentddm.engine.errors import JobError, UserError
from latentddm.engine.loop import SinglePhaseConfig
from latentddm.engine.optimizer import OptimizerConfig
from latentddm.engine.run import RunFolder
from latentddm.inference.generator import Generator, history
from latentddm.training.generator import TrainConfig, describe, train
from latentddm.training.objective import Objective

NETWORK = {
    "channels": 16,
    "multipliers": [1, 2],
    "blocks": 1,
    "attention_levels": [1],
    "head_channels": 16,
}


def config(store: Path, output: Path, images: int = 48) -> TrainConfig:
    return TrainConfig(
        store=str(store),
        output=str(output),
        network=NETWORK,
        objective=Objective(draws=2),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_images=16),
        loop=SinglePhaseConfig(
            images=images, batch_size=8, log_every=8, preview_every=48, checkpoint_every=16
        ),
    )


def final_files(run: RunFolder) -> dict[str, dict[str, torch.Tensor]]:
    checkpoint = newest_checkpoint(run.checkpoints)
    assert checkpoint is not None
    return {path.name: load_file(path) for path in checkpoint.path.glob("*.safetensors")}


def losses(run: RunFolder) -> list[tuple[float, float]]:
    return [(line["images"], line["loss"]) for line in run.read_metrics()]


def test_a_stopped_run_ends_bit_equal_to_one_that_was_never_stopped(
    tiny_store: Path, tmp_path: Path
) -> None:
    straight = train(config(tiny_store, tmp_path / "straight"))
    train(config(tiny_store, tmp_path / "stopped", images=24))
    stopped = RunFolder(tmp_path / "stopped")
    # What a kill leaves behind: a torn checkpoint, and metrics of steps that are not saved.
    (stopped.checkpoints / "images-000000000040").mkdir()
    stopped.log_metrics(40, {"loss": 1.0})
    train(config(tiny_store, tmp_path / "stopped"))

    first, second = final_files(straight), final_files(stopped)
    assert set(first) == {
        f"{name}.safetensors" for name in ("network", "ema", "ema_0.05", "optimizer")
    }
    for name, tensors in first.items():
        assert set(tensors) == set(second[name])
        assert all(torch.equal(tensors[key], second[name][key]) for key in tensors), name
    assert losses(straight) == losses(stopped)


def test_a_run_leaves_what_users_look_for(tiny_store: Path, tmp_path: Path) -> None:
    run = train(config(tiny_store, tmp_path / "run", images=16))
    line = run.read_metrics()[-1]
    assert {"loss", "confinement", "interaction", "spread", "images_per_second"} <= set(line)
    assert any(name.startswith("spread/t0.75") for name in line)
    assert list(run.samples.glob("*.png"))
    assert list(run.path.rglob("events.out.tfevents.*"))
    assert "beta: 1.0" in run.config_path.read_text()
    weights = final_files(run)["ema.safetensors"]
    assert not any(key.startswith(("module.", "_orig_mod.")) for key in weights)


def test_a_store_that_came_without_its_autoencoder_can_be_trained_on(
    encode_tiny: Callable[[str, Path, Path], Path],
    tiny_autoencoder: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Only the pictures are missing, and the warning comes before the training, not at its end."""
    gone = shutil.copytree(tiny_autoencoder, tmp_path / "gone")
    store = encode_tiny("portraits:16", gone, tmp_path / "store")
    shutil.rmtree(gone)

    run = train(config(store, tmp_path / "run", images=16))

    assert f"without previews: The autoencoder {gone} does not exist" in caplog.text
    assert newest_checkpoint(run.checkpoints) is not None
    assert not list(run.samples.glob("*.png"))


def test_plain_diffusion_is_the_same_code_with_other_numbers(
    tiny_store: Path, tmp_path: Path
) -> None:
    plain = replace(
        config(tiny_store, tmp_path / "plain", images=16), objective=Objective.plain_diffusion()
    )
    line = train(plain).read_metrics()[-1]
    assert line["interaction"] == 0
    assert line["loss"] > 0


def test_another_config_in_the_same_folder_is_refused_by_name(
    tiny_store: Path, tmp_path: Path
) -> None:
    train(config(tiny_store, tmp_path / "run", images=8))
    changed = replace(config(tiny_store, tmp_path / "run", images=8), seed=5)
    with pytest.raises(UserError, match=r"differs in: seed"):
        train(changed)


def test_a_folder_that_holds_something_else_is_refused(tiny_store: Path, tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(UserError, match="already holds something else"):
        train(config(tiny_store, tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]


def test_a_step_that_is_not_finite_stops_before_the_weights_change(
    tiny_store: Path, tmp_path: Path
) -> None:
    burning = replace(
        config(tiny_store, tmp_path / "run"),
        optimizer=OptimizerConfig(learning_rate=1e30, clip_norm=1e30),
    )
    with pytest.raises(JobError, match=r"is not finite in step \d+, after \d+ images"):
        train(burning)


@pytest.mark.parametrize("missing", ["store", "output"])
def test_a_missing_key_is_named(tiny_store: Path, tmp_path: Path, missing: str) -> None:
    with pytest.raises(UserError, match=f"'{missing}' is missing"):
        train(replace(config(tiny_store, tmp_path / "run"), **{missing: "???"}))


def test_an_unknown_network_argument_is_named(tiny_store: Path, tmp_path: Path) -> None:
    wrong = replace(config(tiny_store, tmp_path / "run"), network={"chanels": 8})
    with pytest.raises(UserError, match=r"'network.chanels'; did you mean 'channels'"):
        train(wrong)


def mean_run(store: Path, output: Path, **network: object) -> TrainConfig:
    mean = {**NETWORK, "expansion": "none", **network}
    return replace(config(store, output), network=mean, objective=Objective.plain_diffusion())


@pytest.mark.parametrize("expansion", ["input", "middle", "output"])
def test_a_training_starts_from_the_mean_of_another(
    tiny_store: Path, tmp_path: Path, expansion: str
) -> None:
    mean = train(mean_run(tiny_store, tmp_path / "mean"))
    started = replace(
        config(tiny_store, tmp_path / "run", images=24),
        network={**NETWORK, "expansion": expansion},
        optimizer=OptimizerConfig(learning_rate=1e-12),
        start=str(mean.path),
    )
    own, other = (Generator.load(run.path).network for run in (train(started), mean))
    weights = other.trunk[1].input.convolution.weight
    part = [*own.trunk, *own.draw_parts][1]
    torch.testing.assert_close(part.input.convolution.weight, weights, rtol=0, atol=1e-6)
    first = [*own.trunk, *own.draw_parts][0].convolution.weight[
        :, : other.config["latent_channels"]
    ]
    torch.testing.assert_close(first, other.trunk[0].convolution.weight, rtol=0, atol=1e-6)


def test_a_start_is_needed_once_and_a_resumed_run_equals_one_that_was_never_stopped(
    tiny_store: Path, tmp_path: Path
) -> None:
    mean = train(mean_run(tiny_store, tmp_path / "mean"))
    straight = train(replace(config(tiny_store, tmp_path / "straight"), start=str(mean.path)))
    stopped = replace(config(tiny_store, tmp_path / "stopped"), start=str(mean.path))
    train(replace(stopped, loop=replace(stopped.loop, images=24)))
    shutil.rmtree(mean.path)
    seen, seconds = history(straight, 48)
    assert seen == 48 + 48
    assert seconds > straight.training_seconds()
    for name, tensors in final_files(train(stopped)).items():
        for key, tensor in tensors.items():
            assert torch.equal(tensor, final_files(straight)[name][key]), key


def test_a_start_that_does_not_fit_is_one_sentence(tiny_store: Path, tmp_path: Path) -> None:
    mean = train(mean_run(tiny_store, tmp_path / "mean", channels=32))
    wrong = replace(config(tiny_store, tmp_path / "run"), start=str(mean.path))
    with pytest.raises(UserError, match=r"start is .*: its network has channels 32, not 16\."):
        train(wrong)
    with pytest.raises(UserError, match="nowhere"):
        train(replace(wrong, start=str(tmp_path / "nowhere")))


def test_draws_of_a_network_without_xi_are_refused(tiny_store: Path, tmp_path: Path) -> None:
    network = {**NETWORK, "expansion": "none"}
    wrong = replace(config(tiny_store, tmp_path / "run"), network=network)
    with pytest.raises(UserError, match=r"expansion is none, so all of the 2 draws .* the same"):
        train(wrong)
    mean = replace(wrong, objective=Objective.plain_diffusion())
    assert train(mean).read_metrics()[-1]["spread"] == 0


def test_a_dry_run_says_the_size_and_touches_nothing(tiny_store: Path, tmp_path: Path) -> None:
    text = describe(config(tiny_store, tmp_path / "run"))
    assert "parameters" in text
    assert "learning_rate: 0.001" in text
    assert "GiB of weights, gradients, optimizer and averages" in text
    assert "steps/s" in text
    assert not (tmp_path / "run").exists()
