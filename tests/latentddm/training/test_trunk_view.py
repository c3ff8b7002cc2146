"""The view of a frozen network: its middle is read, its weights stay, gradients reach the draws."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_generator_training import assert_same_files, losses
from test_views_in_training import inputs_of, with_views
from tiny_networks import DIT, PATCHES, UNET, inputs, random_network
from tiny_runs import PLAIN, TWO_DRAWS, generator_config, phase
from torch import nn

from autoencoder.store import LatentStore
from latentddm.engine.errors import UserError
from latentddm.engine.run import RunFolder
from latentddm.inference.generator import Generator
from latentddm.inference.latent_space import LatentSpace
from latentddm.networks.blocks import Block, State
from latentddm.networks.dit import TransformerBlock
from latentddm.networks.network import NetworkConfig
from latentddm.training.config import TrainConfig
from latentddm.training.generator import train
from latentddm.training.views.trunk import Trunk, TrunkConfig, middle_block, run_until


@pytest.fixture(scope="module")
def plain(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("trunk") / "plain"
    return train(generator_config(tiny_store, folder, phase(32, PLAIN), phase(16, TWO_DRAWS)))


def trunk_view(store: Path, run: RunFolder, **settings: Any) -> Trunk:
    config = TrunkConfig(run=str(run.path), images=32, **settings)
    view = config.make(inputs_of(store, 0))
    assert isinstance(view, Trunk)
    return view


@pytest.mark.parametrize(
    ("config", "place"),
    [
        (UNET, (2 * (1 + 1) + 1, Block)),  # two levels of a convolution and a block, then two
        (replace(UNET, expansion="middle", blocks=2), (2 * (1 + 2) + 1, Block)),
        (replace(PATCHES, expansion="up1"), (3, Block)),
        (DIT, (1, TransformerBlock)),
        (replace(DIT, blocks=4, draw_blocks=1), (1, TransformerBlock)),
    ],
)
def test_the_middle_is_read_and_nothing_behind_it_runs(
    config: NetworkConfig, place: tuple[int, type[nn.Module]]
) -> None:
    network = random_network(config).eval()
    index, kind = place
    parts = [*network.trunk, *network.draw_parts]
    middle = middle_block(network)
    assert middle is parts[index]
    assert isinstance(middle, kind)
    x_t, t, _ = inputs()
    with torch.no_grad():
        embedding = network.time_embedding(t)
        if kind is Block:
            state: Any = State(x_t)
            for part in parts[: index + 1]:
                state = part(state, embedding, embedding, None)
            expected = state.x.flatten(2)
        else:
            state = network.run_trunk(x_t, embedding).x
            for part in parts[len(network.trunk) : index + 1]:
                state = part(state, embedding, embedding, None)
            expected = state.transpose(1, 2)
        if len(network.trunk) <= index + 1:  # otherwise the trunk goes on behind the middle
            torch.testing.assert_close(run_until(middle, network, x_t, t), expected)
    ran: list[int] = []
    for number, part in enumerate(parts):
        part.register_forward_hook(lambda *_, number=number: ran.append(number))
    again = run_until(middle, network, x_t, t)
    assert again.requires_grad
    assert ran == list(range(index + 1))
    assert network(x_t, t).shape == x_t.shape  # the hook is gone


@pytest.mark.parametrize("noise", [False, True])
def test_gradients_reach_the_draws_and_not_the_network(
    tiny_store: Path, plain: RunFolder, noise: bool
) -> None:
    view = trunk_view(tiny_store, plain, times=(0.1, 0.4), noise=noise)
    assert not view.network.training
    draws = torch.randn(2, 3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    draws.requires_grad_()
    features = view.features(draws, torch.tensor([0.5, 0.9]))
    assert features.shape == (2, 3, 16, 2, 64)
    features.square().mean().backward()
    assert draws.grad is not None
    assert (draws.grad.abs().amax((2, 3, 4)) > 0).all()
    assert all(parameter.grad is None for parameter in view.network.parameters())
    # Each sample for itself, and the same at every call.
    alone = view.features(draws[1:, 2:], torch.tensor([0.9]))
    torch.testing.assert_close(alone[0, 0], features[1, 2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("spots", "count"), [("position", 128), ("whole", 2)])
def test_the_data_have_a_variance_of_one_at_each_level(
    tiny_store: Path, plain: RunFolder, spots: Any, count: int
) -> None:
    view = trunk_view(tiny_store, plain, times=(0.1, 0.4), spots=spots)
    latents = inputs_of(tiny_store, 0).latents(256)[None]
    features = view.features(latents, torch.zeros(1))
    variances = features[0].var(0).mean((0, 2))
    torch.testing.assert_close(variances, torch.ones(2))
    draws, target = latents[:, :2], latents[:, 2]
    score = with_views({"whole": 0.5}).score
    made = replace(score, views={"trunk": view.config}).make(inputs_of(tiny_store, 0))
    found = made(draws, target, torch.full((1,), 0.5))
    apart = view.features(draws, torch.zeros(1)) - view.features(target[:, None], torch.zeros(1))
    squares = apart.square().mean(2)
    squares = squares if spots == "position" else squares.mean(3)
    assert squares.flatten(2).shape[2] == count
    torch.testing.assert_close(found.confinement, squares.flatten(2).sqrt().mean((1, 2)))


def test_a_run_with_the_view_resumes_bit_equal_and_saves_no_trunk(
    tiny_store: Path, plain: RunFolder, tmp_path: Path
) -> None:
    trunk = {"weight": 0.5, "run": str(plain.path), "images": 32, "t_min": 0.3}

    def config(name: str, images: int) -> TrainConfig:
        objective = with_views({"whole": 0.5, "trunk": trunk})
        return generator_config(tiny_store, tmp_path / name, phase(images, objective))

    straight = train(config("straight", 32))
    train(config("stopped", 16))
    stopped = train(config("stopped", 32))
    assert_same_files(straight, stopped)
    assert losses(straight) == losses(stopped)


def test_a_run_keeps_the_checkpoint_of_its_trunk_and_a_missing_one_is_refused_at_once(
    tiny_store: Path, tmp_path: Path
) -> None:
    plain = generator_config(tiny_store, tmp_path / "plain", phase(16, PLAIN))
    trunk = {"weight": 0.5, "run": str(train(plain).path)}

    def wanted(run: str) -> TrainConfig:
        objective = with_views({"whole": 0.5, "trunk": {**trunk, "run": run}})
        return generator_config(tiny_store, tmp_path / "ddm", phase(8, PLAIN), phase(8, objective))

    with pytest.raises(UserError, match="nowhere is not a run folder"):
        train(wanted("nowhere"))
    assert not (tmp_path / "ddm").exists()
    kept = train(wanted(trunk["run"])).read_config()
    assert kept["phases"][1]["objective"]["score"]["views"]["trunk"]["images"] == 16
    train(replace(plain, phases=(phase(24, PLAIN),)))  # it is trained on
    with pytest.raises(UserError, match=r"views\.trunk\.images"):
        train(wanted(trunk["run"]))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (0.5, r"run of the view 'trunk'"),
        ({"run": "RUN", "times": []}, r"views\.trunk: times"),
        ({"run": "RUN", "times": [1.0]}, r"views\.trunk: times .*1\.0"),
        ({"run": "RUN", "samples": 1}, r"views\.trunk: samples .*1"),
        ({"run": "RUN", "spots": "edge"}, r"views\.trunk\.spots.*position, whole"),
    ],
)
def test_a_wrong_setting_is_one_sentence(settings: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        with_views({"trunk": settings})


def test_a_run_that_is_no_trunk_is_refused(
    tiny_store: Path, plain: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"trunk.*not plain diffusion"):
        TrunkConfig(run=str(plain.path)).make(inputs_of(tiny_store, 0))
    generator = Generator.load(plain.path, images=32)
    with monkeypatch.context() as patch:  # a rival's network reads no xi either
        rival = staticmethod(lambda *_, **__: replace(generator, flow_map="free"))
        patch.setattr(Generator, "load", rival)
        with pytest.raises(UserError, match=r"trunk.*not plain diffusion"):
            TrunkConfig(run=str(plain.path), images=32).make(inputs_of(tiny_store, 0))
    config = plain.read_config() | {"teacher": "a run"}
    with monkeypatch.context() as patch:  # nor does a distilled student
        patch.setattr(RunFolder, "read_config", lambda _: config)
        patch.setattr(Generator, "load", staticmethod(lambda *_, **__: generator))
        with pytest.raises(UserError, match=r"trunk.*not plain diffusion"):
            TrunkConfig(run=str(plain.path), images=32).make(inputs_of(tiny_store, 0))
    with pytest.raises(UserError, match="nowhere"):
        TrunkConfig(run=str(tmp_path / "nowhere")).make(inputs_of(tiny_store, 0))
    with pytest.raises(ValueError, match=r"trunk.*training"):
        TrunkConfig(run=str(plain.path)).make()
    theirs = LatentSpace.of_store(LatentStore(tiny_store))
    others = staticmethod(lambda _: replace(theirs, fingerprint="another"))
    monkeypatch.setattr(LatentSpace, "of_store", others)
    with pytest.raises(UserError, match=r"trunk.*other latents"):
        TrunkConfig(run=str(plain.path), images=32).make(inputs_of(tiny_store, 0))
