"""The labels of a store reach the network: learnt in training, chosen in sampling, or refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import Processes
from tiny_runs import (
    ONE_LEVEL,
    TWO_DRAWS,
    final_weights,
    generator_config,
    phase,
    train_until,
)

from latentddm.engine.ema import EMAConfig
from latentddm.engine.errors import UserError
from latentddm.engine.optimizer import OptimizerConfig
from latentddm.engine.run import RunFolder
from latentddm.engine.task import SinglePhaseConfig
from latentddm.inference.generator import Generator, SamplingConfig
from latentddm.training.config import TrainConfig
from latentddm.training.generator import train
from latentddm.training.objective import PlainObjective
from latentddm.training.rivals import InductiveObjective, ShortcutObjective
from latentddm.training.task import in_order_of_labels


@pytest.fixture(scope="module")
def labelled_store(
    encode_tiny: Callable[[str, Path, Path], Path],
    tiny_autoencoder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Noise in two classes, of dark (0) and of light images (1)."""
    from autoencoder.image_io import save_image

    folder = tmp_path_factory.mktemp("labelled")
    noise = np.random.default_rng(0).integers(0, 100, (16, 32, 32, 3), dtype=np.uint8)
    for index in range(16):
        name = folder / "images" / ("dark", "light")[index % 2] / f"{index}.png"
        name.parent.mkdir(parents=True, exist_ok=True)
        save_image(name, noise[index] + 100 * (index % 2))
    return encode_tiny(str(folder / "images"), tiny_autoencoder, folder / "store")


def config(store: Path, output: Path, classes: int, images: int = 16) -> TrainConfig:
    optimizer = OptimizerConfig(learning_rate=3e-3, warmup_images=64)
    wanted = replace(phase(images), optimizer=optimizer)
    return generator_config(store, output, wanted, network=replace(ONE_LEVEL, classes=classes))


def test_a_label_that_was_learnt_chooses_the_class(labelled_store: Path, tmp_path: Path) -> None:
    """Draws of a label lie towards the latents of its class; guidance moves them further.

    A training of seconds takes them a fifth of the way; the noise is the same for every label.
    """
    from autoencoder.store import LatentStore

    run = train(config(labelled_store, tmp_path / "run", classes=2, images=1200))
    generator = Generator.load(run.path)
    store = LatentStore(labelled_store)
    batch = next(store.stream(16))
    assert batch.labels is not None
    latents = store.restore(batch.latents)
    dark, light = (latents[batch.labels == label].mean(0) for label in (0, 1))
    axis = (light - dark) / (light - dark).square().sum()

    def place(label: int | None, guidance: float = 1.0) -> float:
        """Of the mean of draws: 0 at the dark images, 1 at the light ones."""
        settings = SamplingConfig(steps=2, label=label, guidance=guidance)
        drawn = generator.draw(32, settings)
        return float(((drawn.mean(0) - dark) * axis).sum())

    assert place(1) - place(0) > 0.1
    assert place(0) < place(None) < place(1)
    assert place(1, guidance=3.0) > place(1) + 0.05
    settings = SamplingConfig(steps=2)
    with pytest.raises(UserError, match=r"label .*0 \.\.\. 1.*2"):
        generator.draw(1, replace(settings, label=2))
    with pytest.raises(UserError, match=r"guidance .*--label"):
        generator.draw(1, replace(settings, guidance=2.0))


def test_a_store_without_labels_is_named(tiny_store: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"network\.classes .*store .*labels"):
        train(config(tiny_store, tmp_path / "run", classes=2))


@pytest.mark.parametrize(("share", "named"), [(0.0, "without a label"), (1.0, "with a label")])
def test_a_share_of_hidden_labels_that_leaves_a_row_untrained_is_named(
    labelled_store: Path, tmp_path: Path, share: float, named: str
) -> None:
    """Previews and `sample` without --label would read the weights that it began with."""
    wanted = config(labelled_store, tmp_path / "run", classes=2)
    with pytest.raises(UserError, match=rf"label_dropout is {share:g}, .*{named}"):
        train(replace(wanted, label_dropout=share))


def test_a_label_beyond_the_classes_is_named(labelled_store: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"label 1.*network\.classes is 1"):
        train(config(labelled_store, tmp_path / "run", classes=1))


def test_a_run_without_classes_refuses_a_label(tiny_store: Path, tmp_path: Path) -> None:
    run = train(config(tiny_store, tmp_path / "run", classes=0))
    with pytest.raises(UserError, match=r"network\.classes .*--label"):
        Generator.load(run.path).draw(1, SamplingConfig(label=0))


def test_targets_of_other_labels_are_refused(labelled_store: Path, tmp_path: Path) -> None:
    wanted = config(labelled_store, tmp_path / "run", classes=2)
    wanted = replace(wanted, phases=(phase(16, replace(TWO_DRAWS, targets=4)),))
    with pytest.raises(UserError, match=r"phases\.0\.objective\.targets .*network\.classes"):
        train(wanted)


@pytest.mark.parametrize("rival", [False, True])
def test_every_class_in_turn_is_what_the_classes_draw_alone(
    rival: bool, labelled_store: Path, tmp_path: Path
) -> None:
    """In whatever batches: image i has the class i modulo their number."""
    wanted = config(labelled_store, tmp_path / "run", classes=2, images=64)
    if rival:
        (only,) = wanted.phases
        network = replace(wanted.network, times=2)
        phases = (replace(only, objective=ShortcutObjective()),)
        wanted = replace(wanted, network=network, phases=phases)
    generator = Generator.load(train(wanted).path)
    settings = SamplingConfig(steps=2, batch_size=3)
    drawn = generator.draw(7, replace(settings, label="every"), first=1)
    alone = [generator.draw(7, replace(settings, label=label), first=1) for label in (0, 1)]
    assert not torch.allclose(*alone, atol=1e-4)
    for place in range(7):
        torch.testing.assert_close(drawn[place], alone[(1 + place) % 2][place])


def of_groups(store: Path, output: Path) -> TrainConfig:
    """Inductive moment matching in groups of 4, of a network with two classes."""
    wanted = config(store, output, classes=2, images=24)
    (only,) = wanted.phases
    network = replace(wanted.network, times=2)
    return replace(wanted, network=network, phases=(replace(only, objective=InductiveObjective()),))


def test_a_rival_of_groups_resumes_bit_equal_on_labels(
    labelled_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = final_weights(train(of_groups(labelled_store, tmp_path / "whole")))
    stopped = of_groups(labelled_store, tmp_path / "stopped")
    train_until(16, stopped, monkeypatch)
    again = final_weights(train(stopped))
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[name], again[name]) for name in whole)


@pytest.mark.slow
def test_two_processes_train_a_rival_of_groups_on_labels_as_one_does(
    labelled_store: Path, tmp_path: Path
) -> None:
    one = final_weights(train(of_groups(labelled_store, tmp_path / "one")))
    shared = of_groups(labelled_store, tmp_path / "two")
    Processes(2, lambda: train(shared), tmp_path).finish()
    two = final_weights(RunFolder(Path(shared.output)))
    for name, tensor in one.items():
        if name.startswith("network/"):
            torch.testing.assert_close(tensor, two[name], rtol=0, atol=2e-4)


@dataclass
class Gathering:
    """`Accelerator` of one of several processes whose shares are known."""

    shares: list[tuple[torch.Tensor, torch.Tensor]]
    process_index: int

    def gather(self, own: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        for given, known in zip(own, self.shares[self.process_index], strict=True):
            assert torch.equal(given, known)
        return tuple(torch.cat(parts) for parts in zip(*self.shares, strict=True))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_samples_in_groups_have_one_label_where_they_can_on_any_number_of_processes(
    count: int,
) -> None:
    labels = torch.tensor([1, 0, 2, 1, 0, 0, 1, 0, 2, 1, 1, 0, 0, 2, 2, 1])
    x0 = torch.arange(16.0)[:, None]
    shares = list(zip(x0.chunk(count), labels.chunk(count), strict=True))
    sorted_shares = [
        in_order_of_labels(*share, Gathering(shares, rank))  # type: ignore[arg-type]
        for rank, share in enumerate(shares)
    ]
    x, given = (torch.cat(parts) for parts in zip(*sorted_shares, strict=True))
    assert given.tolist() == sorted(labels.tolist())
    assert torch.equal(labels[x[:, 0].long()], given)  # each sample has its own
    assert x[:, 0].unique().tolist() == list(range(16))
    groups = given.unflatten(0, (-1, 4))
    assert int((groups == groups[:, :1]).all(1).sum()) == 3  # of six, six and four of a label


def test_a_student_learns_from_a_teacher_with_classes_under_its_labels(
    labelled_store: Path, tiny_store: Path, tmp_path: Path
) -> None:
    """So few labels are hidden that none is: what stands for none stays as it was."""
    from latentddm.training.distillation import DistillConfig, distill

    wanted = replace(config(labelled_store, tmp_path / "plain", classes=2), label_dropout=1e-9)
    phases = tuple(replace(one, objective=PlainObjective()) for one in wanted.phases)
    teacher = Generator.load(train(replace(wanted, phases=phases)).path)
    settings = DistillConfig(
        teacher=str(tmp_path / "plain"),
        output=str(tmp_path / "student"),
        steps=2,
        optimizer=OptimizerConfig(learning_rate=1e-2, weight_decay=0.0),
        loop=SinglePhaseConfig(images=32, batch_size=8),
        ema=EMAConfig(widths=(0.1,), snapshots=0),
    )
    student = Generator.load(distill(settings).path)
    before, after = (each.network.time_embedding.label.weight for each in (teacher, student))
    moved = (after - before).abs().amax(1)  # of both classes and of none
    assert float(moved[:2].min()) > 1e-4
    assert float(moved[2]) < 1e-6
    drawn = student.draw(4, SamplingConfig(steps=2, churn=1.0, label="every"))
    assert bool(drawn.isfinite().all())
    with pytest.raises(UserError, match=r"takes labels, but the store .* holds none"):
        distill(replace(settings, store=str(tiny_store), output=str(tmp_path / "other")))
