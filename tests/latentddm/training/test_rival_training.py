"""Every rival trains behind the trainer, resumes bit-equal, is sampled and exported as itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from messages import raises_naming
from processes import Processes
from safetensors.torch import load_file
from tiny_runs import PLAIN, UNET, final_weights, generator_config, phase, train_until
from torch import nn

from latentddm.cli import main
from latentddm.engine.config import build, to_plain
from latentddm.engine.errors import UserError
from latentddm.engine.run import RunFolder
from latentddm.engine.task import LoopConfig
from latentddm.hub.export import build_pipeline
from latentddm.inference.generator import Generator, SamplingConfig
from latentddm.inference.samples import LATENTS_NAME
from latentddm.training.config import TrainConfig
from latentddm.training.generator import train
from latentddm.training.rivals import RIVALS, MeanFlowObjective, ShortcutObjective

NETWORK = replace(UNET, times=2, time_frequency=32.0, dropout=0.1)
SETTINGS: dict[str, dict[str, Any]] = {
    "shortcut": {"consistency_share": 0.5, "finest": 16},
    "mean_flow": {"velocity_share": 0.5, "improved": True},
    "moment_matching_inductive": {"group": 4},
}


def config(store: Path, output: Path, kind: str, **changes: Any) -> TrainConfig:
    """A phase of plain diffusion, then one of the rival, on the same network."""
    rival = RIVALS[kind](**SETTINGS[kind])
    loop = LoopConfig(
        batch_size=8, log_every=8, preview_every=32, checkpoint_every=8, keep_checkpoints=4
    )
    phases = (phase(8, PLAIN), phase(24, rival))
    values = {"loop": loop, "network": NETWORK, **changes}
    return generator_config(store, output, *phases, **values)


@pytest.fixture(scope="module", params=RIVALS)
def run(
    request: pytest.FixtureRequest, tiny_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> RunFolder:
    return train(config(tiny_store, tmp_path_factory.mktemp("rivals") / "run", request.param))


def test_a_run_that_was_stopped_ends_bit_equal(
    run: RunFolder, tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = run.read_config()
    values.pop("kind")
    stopped = replace(build(TrainConfig, values, "the run"), output=str(tmp_path / "stopped"))
    train_until(24, stopped, monkeypatch)
    again = train(stopped)
    first, second = final_weights(run), final_weights(again)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_a_sample_costs_as_many_evaluations_as_it_has_steps(run: RunFolder, steps: int) -> None:
    generator, ends = Generator.load(run.path), list[float]()

    def count(network: nn.Module, arguments: tuple[Any, ...]) -> None:
        assert arguments[2] is None  # xi
        ends.append(float(arguments[4][0]))

    with generator.network.register_forward_pre_hook(count):
        generator.draw(2, SamplingConfig(steps=steps))
    assert ends == pytest.approx([1 - (k + 1) / steps for k in range(steps)])


def test_the_command_draws_what_the_run_draws(run: RunFolder, tmp_path: Path) -> None:
    output = tmp_path / "samples"
    asked = ["--steps", "2", "--num", "3", "--seed", "5", "--output", str(output)]
    assert main(["sample", str(run.path), *asked]) == 0
    found = load_file(output / LATENTS_NAME)["latents"]
    drawn = Generator.load(run.path).draw(3, SamplingConfig(steps=2, seed=5))
    torch.testing.assert_close(found.float(), drawn, rtol=0, atol=1e-6)
    assert main(["sample", str(run.path), "--churn", "1", "--output", str(tmp_path / "no")]) == 2


def test_a_run_is_sampled_as_a_flow_map_alone(run: RunFolder) -> None:
    generator = Generator.load(run.path)
    assert generator.flow_map is not None
    drawn = generator.draw(3, SamplingConfig(steps=3))
    assert torch.isfinite(drawn).all()
    torch.testing.assert_close(drawn[1:2], generator.draw(1, SamplingConfig(steps=3), first=1))
    settings = {"churn": 1.0, "xi_scale": 0.9, "safety": 0.02, "solver": "unipc"}
    for name, value in settings.items():
        with raises_naming(UserError, name, str(value), "flow map", "leave it out"):
            generator.draw(1, SamplingConfig(**{name: value}))
    if generator.flow_map == "dyadic":
        with raises_naming(UserError, "grid", "power", "flow map"):
            generator.times(SamplingConfig(grid="power"))
    else:
        assert generator.times(SamplingConfig(grid="power")).tolist()[1] == pytest.approx(0.75**0.5)
    plain = Generator.load(run.path, images=8)  # of the first phase
    assert (plain.flow_map, plain.reads_xi) == (None, False)


def test_a_pipeline_draws_what_the_run_draws(run: RunFolder) -> None:
    generator = Generator.load(run.path)
    pipeline = build_pipeline(generator)
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline(8, pipeline.generators(0, 8), num_inference_steps=3, output_type="latent")
    assert torch.equal(drawn.images, generator.draw(8, SamplingConfig(steps=3)))
    pipeline.scheduler.register_to_config(churn=1.0)
    with pytest.raises(ValueError, match="flow map"):
        pipeline(1, num_inference_steps=3)


def test_metrics_tell_errors_of_velocities_from_those_of_steps(run: RunFolder) -> None:
    logged = [line for line in run.read_metrics() if line["images"] > 8]
    assert any("step_error" in line for line in logged)
    kind = run.read_config()["phases"][1]["objective"]["kind"]
    of_velocity = any("velocity_error" in line for line in logged)
    assert of_velocity == (kind != "moment_matching_inductive")  # which has none
    assert not any("spread" in line for line in logged)
    assert list((run.path / "samples").glob("*.png"))


@pytest.mark.parametrize("kind", RIVALS)
def test_micro_batches_change_nothing_but_rounding(
    kind: str, tiny_store: Path, tmp_path: Path
) -> None:
    parts = []
    for count in (1, 2):
        whole = config(tiny_store, tmp_path / str(count), kind)
        loop = replace(whole.loop, micro_batches=count)
        network = replace(NETWORK, dropout=0.0)
        short = replace(
            whole, loop=loop, network=network, phases=(replace(whole.phases[1], images=8),)
        )
        parts.append(final_weights(train(short)))
    for name, tensor in parts[0].items():
        if name.startswith("network/"):
            torch.testing.assert_close(tensor, parts[1][name], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "kind",
    ["shortcut", pytest.param("moment_matching_inductive", marks=pytest.mark.slow)],
)
def test_two_processes_that_share_the_weights_train_what_one_trains(
    kind: str, tiny_store: Path, tmp_path: Path
) -> None:
    """Of a shortcut model on a process with no step too, where the others evaluate the average."""
    whole = config(tiny_store, tmp_path / "one", kind, network=replace(NETWORK, dropout=0.0))
    settings = {"consistency_share": 0.1} if kind == "shortcut" else {}
    rival = phase(32, RIVALS[kind](**SETTINGS[kind] | settings))
    whole = replace(whole, phases=(rival,))
    sharded = replace(whole, output=str(tmp_path / "two"), loop=replace(whole.loop, sharded=True))
    Processes(2, lambda: train(sharded), tmp_path).finish()
    one, two = final_weights(train(whole)), final_weights(RunFolder(Path(sharded.output)))
    for name, tensor in one.items():
        if name.startswith("network/"):
            torch.testing.assert_close(tensor, two[name], rtol=0, atol=2e-4)


@pytest.mark.parametrize(
    ("kind", "changes", "named"),
    [
        ("shortcut", {"network": UNET}, ["phases.1.objective", "shortcut", "network.times"]),
        (
            "mean_flow",
            {"network": replace(NETWORK, time_frequency=None)},
            ["phases.1.objective", "mean_flow", "derivatives", "network.time_frequency", "32"],
        ),
        ("mean_flow", {"schedule": "cosine"}, ["mean_flow", "schedule", "flow", "cosine"]),
        (
            "moment_matching_inductive",
            {"loop": LoopConfig(batch_size=8, micro_batches=4)},
            ["phases.1.objective", "2 images", "group is 4", "loop.micro_batches"],
        ),
        (
            "mean_flow",
            {"loop": LoopConfig(batch_size=8, sharded=True)},
            ["phases.1.objective", "derivatives", "loop.sharded"],
        ),
    ],
)
def test_what_does_not_go_with_a_rival_is_named(
    kind: str, changes: dict[str, Any], named: list[str], tiny_store: Path, tmp_path: Path
) -> None:
    wrong = config(tiny_store, tmp_path / "run", kind, **changes)
    with raises_naming(UserError, *named):
        train(wrong)


def test_a_config_chooses_a_rival_by_its_kind(tiny_store: Path, tmp_path: Path) -> None:
    values = to_plain(generator_config(tiny_store, tmp_path / "run"))
    values["phases"] = [
        {"images": 8, "objective": {"kind": "mean_flow", "improved": True}},
        {"images": 8, "objective": "shortcut"},
    ]
    chosen = build(TrainConfig, values, "the test")
    assert chosen.phases[0].objective == MeanFlowObjective(improved=True)
    assert chosen.phases[1].objective == ShortcutObjective()
