"""Training: what is resumed equals what was never stopped, and a run refuses what does not fit."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from learning_rates import record_learning_rates
from safetensors.torch import load_file
from tiny_runs import PLAIN, TWO_DRAWS, UNET, generator_config, phase

from autoencoder.store import LatentStore
from autoencoder.store.manifest import Manifest
from latentddm.engine.checkpoint import newest_checkpoint
from latentddm.engine.ema import EMAConfig
from latentddm.engine.errors import JobError, UserError
from latentddm.engine.optimizer import OptimizerConfig
from latentddm.engine.run import RunFolder
from latentddm.engine.trainable_module import TrainableModule
from latentddm.inference.generator import Generator, SamplingConfig
from latentddm.scores.views.components import principal_axes
from latentddm.training import generator
from latentddm.training.config import TrainConfig
from latentddm.training.generator import describe, train
from latentddm.training.rivals.inductive import InductiveObjective


def config(store: Path, output: Path, images: int = 48) -> TrainConfig:
    return generator_config(store, output, phase(images), network=UNET)


def two_phases(store: Path, output: Path) -> TrainConfig:
    """24 images of plain diffusion, then 24 of two draws."""
    return generator_config(store, output, phase(24, PLAIN), phase(24, TWO_DRAWS), network=UNET)


def final_files(run: RunFolder) -> dict[str, dict[str, torch.Tensor]]:
    checkpoint = newest_checkpoint(run.checkpoints)
    assert checkpoint is not None
    return {path.name: load_file(path) for path in checkpoint.path.glob("*.safetensors")}


def assert_same_files(first: RunFolder, second: RunFolder) -> None:
    one, other = final_files(first), final_files(second)
    names = ("network", "ema", "ema_0.05", "optimizer")
    assert set(one) == set(other) == {f"{name}.safetensors" for name in names}
    for name, tensors in one.items():
        assert set(tensors) == set(other[name])
        assert all(torch.equal(tensors[key], other[name][key]) for key in tensors), name


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

    assert_same_files(straight, stopped)
    assert losses(straight) == losses(stopped)


def test_a_run_refuses_other_latents_in_the_place_of_its_own(
    tiny_store: Path, tmp_path: Path
) -> None:
    """Even a finished run: its statistics would be those of latents that it has never seen."""
    store = Path(shutil.copytree(tiny_store, tmp_path / "store"))
    run = train(config(store, tmp_path / "run", images=8)).path
    before = (run / "latents.json").read_bytes()
    path = store / "manifest.json"
    manifest = Manifest.from_bytes(path.read_bytes(), str(path))
    path.write_bytes(replace(manifest, mean=manifest.mean + 1).to_bytes())
    for images in (8, 16):
        with pytest.raises(UserError, match="begun on other latents"):
            train(config(store, run, images))
    assert (run / "latents.json").read_bytes() == before
    # A damaged file is restored from the store.
    (run / "latents.json").write_text("{}")
    train(config(tiny_store, tmp_path / "other", images=8))
    shutil.copy(tiny_store / "manifest.json", store)
    train(config(store, run, images=8))
    assert (run / "latents.json").read_bytes() == before


def test_credentials_of_a_store_are_kept_nowhere(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "https://someone:SECRET@host/store?token=SECRET"
    opened = []
    monkeypatch.setattr(
        generator, "LatentStore", lambda name: (opened.append(name), LatentStore(tiny_store))[1]
    )
    wanted = replace(config(tiny_store, tmp_path / "run", images=8), store=secret)
    run = train(wanted).path
    assert opened == [secret]
    assert "SECRET" not in describe(wanted)
    assert "store: https://host/store" in (run / "config.yaml").read_text()
    for path in run.rglob("*"):
        assert path.is_dir() or b"SECRET" not in path.read_bytes(), path
    train(wanted)  # the same run once more


def test_a_network_of_eps_is_trained_and_previewed(tiny_store: Path, tmp_path: Path) -> None:
    """It has no x_0 at t = 1, where the times of other previews begin."""
    eps = generator_config(
        tiny_store, tmp_path / "run", phase(8, PLAIN), network=replace(UNET, prediction="eps")
    )
    run = train(eps)
    assert [picture.stem for picture in run.samples.iterdir()] == ["images-000000000008"]
    assert bool(Generator.load(run.path).draw(2, SamplingConfig(steps=2)).isfinite().all())


def test_a_corrected_config_takes_the_folder_of_a_refused_training(
    tiny_store: Path, tmp_path: Path
) -> None:
    def matching(group: int) -> TrainConfig:
        network = replace(UNET, times=2)
        objective = InductiveObjective(group=group)
        return generator_config(tiny_store, tmp_path / "run", phase(8, objective), network=network)

    with pytest.raises(UserError, match=r"phases\.0\.objective.*group is 3"):
        train(matching(3))
    assert "group: 4" in train(matching(4)).config_path.read_text()
    with pytest.raises(UserError, match=r"another config .*objective\.group"):
        train(matching(2))


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


def test_plain_diffusion_draws_without_xi(tiny_store: Path, tmp_path: Path) -> None:
    plain = generator_config(tiny_store, tmp_path / "plain", phase(16, PLAIN))
    run = train(plain)
    line = run.read_metrics()[-1]
    assert line["loss"] > 0
    assert "interaction" not in line
    generator = Generator.load(run.path)
    assert not generator.reads_xi
    denoiser = generator.denoiser(SamplingConfig())
    x_t, t = torch.randn(2, *generator.space.shape), torch.tensor([0.5, 0.9])
    assert torch.equal(denoiser(x_t, t, torch.randn_like(x_t)), denoiser(x_t, t, 0 * x_t))


def test_a_ddm_begins_from_the_averages_of_its_plain_phase(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same network, other optimizer; the weights that only xi reads are left as they were made."""
    made: list[TrainableModule] = []
    before = TrainableModule.__init__

    def remember(self: TrainableModule, network: torch.nn.Module, *rest: object) -> None:
        before(self, network, *rest)
        made.append(self)
        states.append({key: value.clone() for key, value in network.state_dict().items()})

    states: list[dict[str, torch.Tensor]] = []
    monkeypatch.setattr(TrainableModule, "__init__", remember)
    wanted = two_phases(tiny_store, tmp_path / "run")
    run = train(replace(wanted, loop=replace(wanted.loop, keep_checkpoints=9)))
    plain, ddm = made
    assert plain.optimizer is not ddm.optimizer
    averaged = load_file(run.checkpoints / "images-000000000024" / "ema.safetensors")
    assert all(torch.equal(states[1][key], averaged[key]) for key in averaged)
    trainable = {id(p) for p in plain.network.parameters() if p.requires_grad}
    noise = {id(p) for p in plain.network.draw_parameters()}
    assert noise
    assert not trainable & noise
    assert all(parameter.requires_grad for parameter in ddm.network.parameters())
    lines = run.read_metrics()
    assert [line["images"] for line in lines] == [8, 16, 24, 32, 40, 48]
    assert ["interaction" in line for line in lines] == [False] * 3 + [True] * 3
    assert [Generator.load(run.path, images=n).reads_xi for n in (24, 48)] == [False, True]


@pytest.mark.parametrize("stopped_at", [16, 24, 40])
def test_a_run_that_is_stopped_in_either_phase_or_at_the_border_ends_bit_equal(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped_at: int
) -> None:
    straight = train(two_phases(tiny_store, tmp_path / "straight"))
    step = TrainableModule.step

    def stop(self: TrainableModule, images: int) -> torch.Tensor:
        if images == stopped_at:
            raise KeyboardInterrupt
        return step(self, images)

    monkeypatch.setattr(TrainableModule, "step", stop)
    with pytest.raises(KeyboardInterrupt):
        train(two_phases(tiny_store, tmp_path / "stopped"))
    monkeypatch.undo()
    stopped = train(two_phases(tiny_store, tmp_path / "stopped"))
    assert_same_files(straight, stopped)
    assert losses(straight) == losses(stopped)


def test_a_later_phase_can_be_made_longer_and_an_earlier_one_cannot(
    tiny_store: Path, tmp_path: Path
) -> None:
    first = two_phases(tiny_store, tmp_path / "run")
    train(first)
    plain, ddm = first.phases
    train(replace(first, phases=(plain, replace(ddm, images=40))))
    assert newest_checkpoint(RunFolder(tmp_path / "run").checkpoints).images == 64
    with pytest.raises(UserError, match=r"phases\.0\.images"):
        train(replace(first, phases=(replace(plain, images=32), ddm)))


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
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights: list[dict[str, torch.Tensor]] = []
    before_step = TrainableModule.step

    def step(self: TrainableModule, images: int) -> torch.Tensor:
        state = self.network.state_dict()
        weights.append({key: value.clone() for key, value in state.items()})
        try:
            return before_step(self, images)
        except JobError:
            weights.append({key: value.clone() for key, value in state.items()})
            raise

    monkeypatch.setattr(TrainableModule, "step", step)
    burning = phase(48, rate=1e30)
    burning = replace(burning, optimizer=replace(burning.optimizer, clip_norm=1e30))
    with pytest.raises(JobError, match=r"not finite in step \d+, after \d+ images"):
        train(generator_config(tiny_store, tmp_path / "run", burning))
    last, after = weights[-2:]
    assert all(torch.equal(last[key], after[key]) for key in last)
    assert any(not torch.equal(weights[0][key], last[key]) for key in last)  # earlier steps did


def test_the_learning_rate_warms_up_and_decays_within_each_phase(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = record_learning_rates(monkeypatch)
    slow = OptimizerConfig(learning_rate=1e-3, warmup_images=16)
    phases = (
        replace(phase(24, PLAIN), optimizer=slow),
        replace(phase(16), optimizer=replace(slow, warmup_images=0, decay="cosine")),
    )
    train(generator_config(tiny_store, tmp_path / "run", *phases))
    assert rates == pytest.approx([1e-3 / 16, 9e-3 / 16, 1e-3, 1e-3, 0.5e-3])


@pytest.mark.parametrize("missing", ["store", "output"])
def test_a_missing_key_is_named(tiny_store: Path, tmp_path: Path, missing: str) -> None:
    with pytest.raises(UserError, match=f"'{missing}' is missing"):
        train(replace(config(tiny_store, tmp_path / "run"), **{missing: "???"}))


def test_a_training_starts_from_the_averaged_weights_of_another_run(
    tiny_store: Path, tmp_path: Path
) -> None:
    other = train(config(tiny_store, tmp_path / "other", images=16))
    started = generator_config(
        tiny_store, tmp_path / "run", phase(8, rate=1e-12), network=UNET, start=str(other.path)
    )
    own = Generator.load(train(started).path).network.state_dict()
    for key, weights in Generator.load(other.path).network.state_dict().items():
        torch.testing.assert_close(own[key], weights, rtol=0, atol=1e-9)


def test_a_start_may_be_without_the_global_noise_of_the_run(
    tiny_store: Path, tmp_path: Path
) -> None:
    """Those weights are of xi alone; a run of before the key, which has none, may be one too."""
    other = train(config(tiny_store, tmp_path / "other", images=16))
    text = other.config_path.read_text()
    assert "  global_noise: false\n" in text
    other.config_path.write_text(text.replace("  global_noise: false\n", ""))
    network = replace(UNET, global_noise=True)
    wanted = generator_config(
        tiny_store,
        tmp_path / "run",
        phase(8, rate=1e-12),
        network=network,
        start=str(other.path),
    )
    own = Generator.load(train(wanted).path).network.state_dict()
    new = {key for key in own if key.startswith("global_noise.")}
    theirs = Generator.load(other.path).network.state_dict()
    assert set(own) == set(theirs) | new
    assert new
    for key, weights in theirs.items():
        torch.testing.assert_close(own[key], weights, rtol=0, atol=1e-9)
    back = generator_config(tiny_store, tmp_path / "back", network=UNET, start=str(wanted.output))
    with pytest.raises(UserError, match=r"start is .*network\.global_noise"):
        train(back)


def test_the_noise_of_a_run_takes_its_axes_from_the_store_once(
    tiny_store: Path, tmp_path: Path
) -> None:
    """They are saved with the weights, and a run that starts from one with white noise has them."""
    white = train(config(tiny_store, tmp_path / "white", images=16))
    network = replace(UNET, noise="posterior", gaussian_components=3)

    def coloured(name: str, images: int) -> TrainConfig:
        wanted = generator_config(tiny_store, tmp_path / name, phase(images), network=network)
        return replace(wanted, start=str(white.path))

    straight = Generator.load(train(coloured("straight", 48)).path).network
    train(coloured("stopped", 16))
    resumed = Generator.load(train(coloured("stopped", 48)).path).network
    for key, tensor in straight.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], tensor), key
    store = LatentStore(tiny_store)
    latents = next(store.stream(len(store))).latents
    axes, variances = principal_axes(latents)
    gaussian = straight.gaussian_latents
    assert gaussian is not None
    torch.testing.assert_close(gaussian.mean, latents.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gaussian.variances[:3].double(), variances[:3], rtol=1e-4, atol=1e-6)
    along = (gaussian.axes.double() * axes[:, :3]).sum(0).abs()
    torch.testing.assert_close(along, torch.ones(3).double(), rtol=1e-4, atol=1e-4)
    fewer = replace(coloured("fewer", 16), start=str(tmp_path / "straight"))
    fewer = replace(fewer, network=replace(network, gaussian_components=2))
    with pytest.raises(UserError, match=r"start is .*network\.gaussian_components"):
        train(fewer)
    back = replace(config(tiny_store, tmp_path / "back", 16), start=str(tmp_path / "straight"))
    with pytest.raises(UserError, match=r"start is .*network\.noise"):
        train(back)


def test_a_start_is_needed_once_and_a_resumed_run_equals_one_that_was_never_stopped(
    tiny_store: Path, tmp_path: Path
) -> None:
    other = train(config(tiny_store, tmp_path / "other", images=16))

    def started(name: str, images: int) -> TrainConfig:
        return replace(config(tiny_store, tmp_path / name, images), start=str(other.path))

    straight = train(started("straight", 48))
    train(started("stopped", 24))
    before = other.effort(16)
    shutil.rmtree(other.path)
    stopped = train(started("stopped", 48))
    assert_same_files(straight, stopped)
    # What the other run took counts, although it is gone.
    whole, own = stopped.effort(48), replace(before, images=0, seconds=0.0, core_seconds=0.0)
    stopped.keep_effort_before(own)
    assert whole == stopped.effort(48) + before
    assert (whole.images, before.images) == (64, 16)
    assert before.seconds > 0 < before.core_seconds


def test_a_start_that_does_not_fit_is_one_sentence(tiny_store: Path, tmp_path: Path) -> None:
    wide = replace(UNET, channels=32)
    other = train(generator_config(tiny_store, tmp_path / "other", network=wide))
    wrong = replace(config(tiny_store, tmp_path / "run"), start=str(other.path))
    with pytest.raises(UserError, match=r"start is .*network\.channels"):
        train(wrong)
    with pytest.raises(UserError, match="nowhere"):
        train(replace(wrong, start=str(tmp_path / "nowhere")))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"phases": ()}, ["phases", "empty"]),
        ({"ema": EMAConfig(widths=())}, ["ema.widths"]),
        ({"network": replace(UNET, patch_size=3)}, ["8 x 8", "patch_size"]),
        ({"network": replace(UNET, classes=5)}, ["network.classes", "labels"]),
    ],
)
def test_a_config_that_cannot_be_trained_is_refused_before_anything_is_written(
    tiny_store: Path, tmp_path: Path, changes: dict[str, object], named: list[str]
) -> None:
    with pytest.raises(UserError) as raised:
        train(replace(config(tiny_store, tmp_path / "run"), **changes))
    assert all(part in str(raised.value) for part in named), str(raised.value)
    assert not (tmp_path / "run").exists()


def test_a_dry_run_says_the_size_and_touches_nothing(tiny_store: Path, tmp_path: Path) -> None:
    text = describe(two_phases(tiny_store, tmp_path / "run"))
    assert "phase 1 of 2: plain, 24 images" in text
    assert "phase 2 of 2: ddm of 2 draws, 24 images" in text
    assert "parameters" in text
    assert "learning_rate: 0.001" in text
    assert "attention sdpa (" in text  # and why not xformers
    assert "GiB of weights, gradients, optimizer and averages" in text
    assert text.count("steps/s") == 2
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="nowhere is not a run folder"):  # as in the training
        describe(replace(two_phases(tiny_store, tmp_path / "run"), start="nowhere"))
