"""Labels: dropped in training, asked for in sampling, refused where there are none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from latentddm.diffusion.guidance import GuidedDenoiser, drop_labels
from latentddm.engine.errors import UserError
from latentddm.engine.task import SinglePhaseConfig
from latentddm.inference.generator import Generator, SamplingConfig
from latentddm.training.generator import TrainConfig, train
from latentddm.training.objective import Objective

NETWORK = {"channels": 16, "multipliers": [1], "blocks": 1, "attention_levels": []}


@pytest.fixture(scope="module")
def labelled_store(
    encode_tiny: Callable[[str, Path, Path], Path],
    tiny_autoencoder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    from autoencoder.image_io import save_image

    folder = tmp_path_factory.mktemp("labelled")
    noise = np.random.default_rng(0).integers(0, 100, (16, 32, 32, 3), dtype=np.uint8)
    for index in range(16):
        name = folder / "images" / ("dark", "light")[index % 2] / f"{index}.png"
        name.parent.mkdir(parents=True, exist_ok=True)
        save_image(name, noise[index] + 100 * (index % 2))
    return encode_tiny(str(folder / "images"), tiny_autoencoder, folder / "store")


def config(store: Path, output: Path, classes: int) -> TrainConfig:
    return TrainConfig(
        store=str(store),
        output=str(output),
        network={**NETWORK, "classes": classes},
        objective=Objective(draws=2),
        loop=SinglePhaseConfig(images=16, batch_size=8),
    )


def test_guidance_is_the_extrapolation_with_one_xi_for_both_branches() -> None:
    seen: list[Tensor] = []

    def denoiser(x_t: Tensor, t: Tensor, xi: Tensor, labels: Tensor) -> Tensor:
        seen.append(xi)
        return x_t * t[:, None] + xi + 10.0 * labels[:, None]

    x_t, t, xi = torch.randn(3, 5), torch.rand(3), torch.randn(3, 5)
    none, label = denoiser(x_t, t, xi, torch.full((3,), 4)), denoiser(x_t, t, xi, torch.ones(3))
    seen.clear()
    guided = GuidedDenoiser(denoiser, label=1, classes=4, guidance=2.5)(x_t, t, xi)
    torch.testing.assert_close(guided, none + 2.5 * (label - none))
    assert len(seen) == 1  # both branches in one call
    assert torch.equal(seen[0], torch.cat([xi, xi]))
    for guidance, expected in ((1.0, label), (0.0, none)):
        denoise = GuidedDenoiser(denoiser, label=1, classes=4, guidance=guidance)
        torch.testing.assert_close(denoise(x_t, t, xi), expected)


def test_dropped_and_missing_labels_become_none_and_the_rest_stay() -> None:
    labels, uniform = torch.tensor([0, 1, -1, 2]), torch.tensor([0.05, 0.5, 0.9, 0.1])
    assert drop_labels(labels, uniform, 0.1, classes=3).tolist() == [3, 1, 3, 2]


def test_a_label_changes_what_is_drawn_and_no_label_is_another_thing_still(
    labelled_store: Path, tmp_path: Path
) -> None:
    run = train(config(labelled_store, tmp_path / "run", classes=2))
    generator = Generator.load(run.path)
    torch.nn.init.normal_(generator.network.time_embedding.label.weight)  # so short a training
    settings = SamplingConfig(steps=2)
    drawn = [
        generator.draw(2, replace(settings, label=label, guidance=guidance))
        for label, guidance in ((None, 1.0), (0, 1.0), (1, 1.0), (1, 3.0))
    ]
    for index, first in enumerate(drawn):
        for second in drawn[index + 1 :]:
            assert (first - second).abs().max() > 1e-5
    with pytest.raises(UserError, match=r"label must lie in 0 ... 1, not 2"):
        generator.draw(1, replace(settings, label=2))
    with pytest.raises(UserError, match="guidance needs a label"):
        generator.draw(1, replace(settings, guidance=2.0))


def test_a_store_without_labels_is_named(tiny_store: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"store .* holds no labels"):
        train(config(tiny_store, tmp_path / "run", classes=2))


def test_a_label_beyond_the_classes_is_named(labelled_store: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"label 1, but network.classes is 1"):
        train(config(labelled_store, tmp_path / "run", classes=1))


def test_a_run_without_classes_refuses_a_label(tiny_store: Path, tmp_path: Path) -> None:
    run = train(config(tiny_store, tmp_path / "run", classes=0))
    with pytest.raises(UserError, match="trained without labels"):
        Generator.load(run.path).draw(1, SamplingConfig(label=0))


def test_targets_of_other_labels_are_refused(labelled_store: Path, tmp_path: Path) -> None:
    wanted = config(labelled_store, tmp_path / "run", classes=2)
    wanted = replace(wanted, objective=replace(wanted.objective, targets=4))
    with pytest.raises(UserError, match=r"objective.targets takes .* whatever its label"):
        train(wanted)
