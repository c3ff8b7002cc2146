"""A network by its config: made, saved, loaded, refused; predictions, schedules, labels."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_networks import DIT, KINDS, PATCHES, SHAPE, UNET, VARIANTS, fresh, inputs, random_network

from latentddm.diffusion.process import to_x0
from latentddm.diffusion.schedules import CosineSchedule, FlowSchedule
from latentddm.engine.config import build, to_plain
from latentddm.engine.errors import UserError
from latentddm.networks.attention import default_backend
from latentddm.networks.dit import DiT, DiTConfig
from latentddm.networks.network import (
    NETWORKS,
    NetworkConfig,
    default_config,
    make_network,
)
from latentddm.networks.unet import UNet, UNetConfig

every_kind = pytest.mark.parametrize("config", KINDS.values(), ids=KINDS.keys())
every_variant = pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())


def settings_of(network: Any) -> dict[str, Any]:
    """The registered config without diffusers' own keys."""
    return {key: value for key, value in network.config.items() if not key.startswith("_")}


# Configs


def test_the_key_kind_chooses_the_network_of_a_config() -> None:
    assert build(NetworkConfig, {}, "config.yaml") == UNetConfig() == default_config()
    assert default_config().expansion == "input"  # the paper's form
    values = {"kind": "dit", "width": 64, "head_channels": 32}
    assert build(NetworkConfig, values, "config.yaml") == DiTConfig(width=64, head_channels=32)


@every_variant
def test_a_resolved_config_is_read_back_as_the_same(config: NetworkConfig) -> None:
    assert build(NetworkConfig, to_plain(config), "config.yaml") == config


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"kind": "mlp"}, ["kind", "unet", "dit", "mlp"]),
        ({"chanels": 8}, ["chanels", "channels"]),
        ({"kind": "dit", "channels": 8}, ["channels"]),
        ({"prediction": "score"}, ["prediction"]),
        ({"sigma_data": 0.0}, ["sigma_data", "0.0"]),
        ({"dropout": 1.0}, ["dropout"]),
        ({"classes": -1}, ["classes"]),
        ({"patch_size": 0}, ["patch_size"]),
        ({"expansion": "output", "draw_blocks": 0}, ["draw_blocks"]),
        ({"expansion": "end"}, ["expansion", "input", "middle", "up0", "output", "end"]),
        ({"kind": "dit", "patch_size": 0}, ["patch_size"]),
        ({"kind": "dit", "width": 100}, ["width", "head_channels"]),
        ({"kind": "dit", "blocks": 4, "draw_blocks": 5}, ["draw_blocks", "4", "5"]),
        ({"kind": "dit", "draw_blocks": 0}, ["draw_blocks"]),
        ({"kind": "dit", "positions": "rotary"}, ["positions", "sinusoidal", "learnt"]),
    ],
)
def test_a_wrong_setting_is_named_with_its_file(values: dict[str, Any], named: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        build(NetworkConfig, values, "config.yaml", "network.")
    for part in ["config.yaml", "network", *named]:
        assert part in str(caught.value)


def test_without_a_config_file_a_wrong_setting_is_refused_too() -> None:
    with pytest.raises(ValueError, match="prediction"):
        UNet(latent_channels=3, prediction="score")
    with pytest.raises(ValueError, match="kind"):
        UNet(latent_channels=3, kind="dit")
    with pytest.raises(TypeError, match="chanels"):
        UNet(latent_channels=3, chanels=8)
    with pytest.raises(ValueError, match="schedule must be one of flow, cosine"):
        UNet(latent_channels=3, schedule="linear")


@every_kind
def test_the_arguments_of_a_network_are_in_its_signature(config: NetworkConfig) -> None:
    parameters = inspect.signature(NETWORKS[config.kind]).parameters
    assert list(parameters)[:4] == ["latent_channels", "latent_size", "schedule", "kind"]
    defaults = {name: each.default for name, each in list(parameters.items())[3:]}
    assert type(config)(**defaults) == type(config)()


# A diffusers model


@every_variant
@pytest.mark.parametrize("schedule", ["flow", "cosine"])
def test_saved_and_loaded_it_is_the_same_network(
    tmp_path: Path, config: NetworkConfig, schedule: str
) -> None:
    network = random_network(config, schedule, classes=2, dropout=0.1, sigma_data=0.3).eval()
    x_t, t, xi = inputs()
    network.save_pretrained(tmp_path)
    assert (tmp_path / "diffusion_pytorch_model.safetensors").is_file()
    loaded = type(network).from_pretrained(tmp_path)
    assert settings_of(loaded) == settings_of(network)
    assert loaded.config["schedule"] == schedule
    assert torch.equal(loaded(x_t, t, xi), network(x_t, t, xi))
    assert torch.equal(loaded(x_t, t), network(x_t, t))


def test_a_saved_folder_with_an_unknown_key_loads_without_it(tmp_path: Path) -> None:
    """As any model of diffusers, which warns; so a folder of a later version can be tried."""
    network = fresh(DIT)
    network.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace("{", '{"of_the_future": 1,', 1))
    loaded = settings_of(DiT.from_pretrained(tmp_path))
    assert {key: loaded[key] for key in settings_of(network)} == settings_of(network)


def test_a_setting_does_not_hide_a_layer_of_the_same_name() -> None:
    """diffusers would return the setting, with a warning."""
    network = fresh(DIT)
    assert network.config["positions"] == "sinusoidal"
    assert isinstance(network.positions, torch.nn.Module)
    with pytest.raises(AttributeError, match="width"):
        _ = network.width


@every_kind
def test_the_config_of_a_network_makes_the_same_one(config: NetworkConfig) -> None:
    network = fresh(config)
    again = type(network).from_config(network.config)
    assert settings_of(again) == settings_of(network)
    expected = {name: weights.shape for name, weights in network.state_dict().items()}
    assert {name: weights.shape for name, weights in again.state_dict().items()} == expected


# Predictions, schedules, labels, shapes


@every_kind
@pytest.mark.parametrize("schedule", [FlowSchedule(), CosineSchedule()], ids=["flow", "cosine"])
@pytest.mark.parametrize("prediction", ["x0", "eps", "v", "edm"])
def test_the_prediction_is_converted_with_the_schedule(
    config: NetworkConfig, schedule: Any, prediction: Any
) -> None:
    x_t, t, xi = inputs()
    plain = random_network(config, prediction="x0").eval()
    network = random_network(config, schedule.name, prediction=prediction, sigma_data=0.3).eval()
    output = plain(x_t, t, xi)
    expected = to_x0(output, x_t[:, None], t, prediction, schedule, 0.3)
    torch.testing.assert_close(network(x_t, t, xi), expected)
    expected = to_x0(plain(x_t, t), x_t, t, prediction, schedule, 0.3)
    torch.testing.assert_close(network(x_t, t), expected)


@every_kind
@pytest.mark.parametrize("schedule", ["flow", "cosine"])
def test_at_t_zero_the_v_prediction_gives_back_x_t(config: NetworkConfig, schedule: str) -> None:
    network, (x_t, _, xi) = random_network(config, schedule), inputs()
    torch.testing.assert_close(network(x_t, torch.zeros(2), xi[:, 0]), x_t)


@every_kind
def test_every_input_matters(config: NetworkConfig) -> None:
    network, (x_t, t, xi) = random_network(config, classes=3).eval(), inputs()
    none = torch.full((2,), 3)
    base = network(x_t, t, xi)
    assert torch.equal(network(x_t, t, xi, none), base)
    labels = torch.tensor([0, 2])
    for changed in ((x_t + 1, t, xi), (x_t, t * 0.5, xi), (x_t, t, -xi), (x_t, t, xi, labels)):
        assert (network(*changed) - base).abs().max() > 1e-3
    assert not torch.equal(network(x_t, t, None, labels), network(x_t, t, None))


@every_kind
def test_latents_that_are_not_square_and_of_other_sizes_work(config: NetworkConfig) -> None:
    network, (_, t, _) = random_network(config), inputs()
    for height, width in ((8, 8), (4, 16)):
        x_t = torch.randn(2, SHAPE[0], height, width)
        network.check_latents(x_t.shape[1:])
        assert network(x_t, t, torch.randn_like(x_t)).shape == x_t.shape


@pytest.mark.parametrize(
    ("config", "shape", "named"),
    [
        (UNET, (4, 8, 8), ["latent_channels"]),
        (DIT, (4, 8, 8), ["latent_channels"]),
        (UNET, (3, 8, 9), ["8 x 9", "patch_size", "multipliers"]),
        (DIT, (3, 8, 9), ["8 x 9", "patch_size"]),
        (PATCHES, (3, 8, 6), ["8 x 6", "patch_size"]),
        (replace(PATCHES, attention_levels=()), (3, 8, 8), ["attention_levels", "patch_size to 8"]),
    ],
)
def test_latents_that_do_not_fit_are_refused_naming_the_setting(
    config: NetworkConfig, shape: tuple[int, int, int], named: list[str]
) -> None:
    with torch.device("meta"):
        network = make_network(config, SHAPE)
    with pytest.raises(ValueError) as caught:
        network.check_latents(shape)
    for part in named:
        assert part in str(caught.value)


def test_one_patch_of_all_latents_needs_no_attention() -> None:
    whole = replace(PATCHES, patch_size=8, attention_levels=())
    fresh(whole).check_latents((3, 8, 8))


@pytest.mark.parametrize("name", ["unet, output", "dit, gaussian mean"])
def test_a_network_compiles_in_one_piece(name: str) -> None:
    network, (x_t, t, xi) = fresh(VARIANTS[name]).eval(), inputs()
    default_backend("cpu", torch.float32)  # a compiled step could not probe
    torch._dynamo.reset()
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x_t, t, xi), network(x_t, t, xi))
    if name == "dit, gaussian mean":
        torch.testing.assert_close(compiled(x_t, t), network(x_t, t))


@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        (UNetConfig, {"multipliers": ()}, "multipliers"),
        (UNetConfig, {"blocks": -1}, "blocks .*-1"),
        (UNetConfig, {"head_channels": 0}, "head_channels .*0"),
        (UNetConfig, {"expansion": "output", "up_blocks": 0}, "up_blocks .*output"),
        (UNetConfig, {"channels": 8}, "level 1 of attention_levels has 16 channels, fewer than"),
        (DiTConfig, {"head_channels": 0}, "head_channels .*0"),
    ],
)
def test_settings_that_make_no_network_are_named(
    kind: type[NetworkConfig], settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        kind(**settings)
