"""What makes training fast or small changes nothing of what is trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_runs import generator_config, phase

from latentddm.engine.errors import UserError
from latentddm.engine.task import LoopConfig
from latentddm.inference.generator import Generator
from latentddm.networks.network import make_network
from latentddm.networks.unet import UNetConfig
from latentddm.training.config import TrainConfig
from latentddm.training.generator import train
from latentddm.training.performance import (
    PerformanceConfig,
    apply_performance,
    describe_performance,
)

NETWORK = UNetConfig(
    channels=16,
    multipliers=(1,),
    blocks=1,
    attention_levels=(0,),
    head_channels=16,
    dropout=0.2,
    expansion="up0",
)


def config(store: Path, output: Path, images: int = 16, **performance: bool) -> TrainConfig:
    loop = LoopConfig(batch_size=8, checkpoint_every=8)
    switches = PerformanceConfig(**performance)
    return generator_config(
        store, output, phase(images), network=NETWORK, loop=loop, performance=switches
    )


def weights(run: Path) -> torch.Tensor:
    network = Generator.load(run).network
    return torch.cat([parameter.flatten() for parameter in network.parameters()])


@pytest.mark.parametrize("switch", ["two_pass", "checkpointing", "channels_last"])
def test_a_run_learns_the_same_with_the_switch_on(
    tiny_store: Path, tmp_path: Path, switch: str
) -> None:
    plain = train(config(tiny_store, tmp_path / "plain"))
    switched = train(config(tiny_store, tmp_path / "switched", **{switch: True}))
    torch.testing.assert_close(weights(switched.path), weights(plain.path), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_run_with_dropout_resumes_to_the_same_weights_and_may_change_a_switch(
    tiny_store: Path, tmp_path: Path, channels_last: bool
) -> None:
    switches = {"channels_last": channels_last}
    straight = train(config(tiny_store, tmp_path / "straight", **switches))
    train(config(tiny_store, tmp_path / "stopped", images=8, **switches))
    stopped = train(config(tiny_store, tmp_path / "stopped", **switches))
    assert torch.equal(weights(straight.path), weights(stopped.path))
    train(config(tiny_store, tmp_path / "stopped", images=24, two_pass=True))


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about a machine without CUDA")
def test_cuda_graphs_without_cuda_are_refused(tiny_store: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cuda_graphs needs a CUDA device"):
        train(config(tiny_store, tmp_path / "run", cuda_graphs=True))


def test_the_line_at_the_start_names_what_is_on() -> None:
    config = PerformanceConfig(two_pass=True, channels_last=True)
    line = describe_performance(config, "bf16", torch.device("cpu"))
    assert line == "cpu, bf16 autocast; attention sdpa; two-pass gradient, channels_last"


@pytest.mark.parametrize("place", ["input", "up0"])
def test_channels_last_is_the_format_of_the_feature_maps_to_the_end(place: str) -> None:
    network = make_network(replace(NETWORK, expansion=place), 3)
    apply_performance(network, PerformanceConfig(channels_last=True), torch.device("cpu"))
    formats = []
    for part in (*network.trunk, *network.draw_parts):
        part.register_forward_hook(
            lambda _, __, state: formats.append(
                state.x.is_contiguous(memory_format=torch.channels_last)
            )
        )
    network(torch.randn(2, 3, 8, 8), torch.rand(2), torch.randn(2, 3, 3, 8, 8))
    assert formats
    assert all(formats)


def test_autocast_leaves_the_draws_in_float32_and_close() -> None:
    torch.manual_seed(0)
    network = make_network(replace(NETWORK, dropout=0.0), 3)
    x_t, t, xi = torch.randn(2, 3, 8, 8), torch.rand(2), torch.randn(2, 3, 3, 8, 8)
    exact = network(x_t, t, xi)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = network(x_t, t, xi)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, rtol=0.05, atol=0.05)


def test_switches_leave_the_names_of_the_weights_alone() -> None:
    network = make_network(NETWORK, 3)
    names = set(network.state_dict())
    everything = PerformanceConfig(
        two_pass=True, checkpointing=True, channels_last=True, compile=True
    )
    apply_performance(network, everything, torch.device("cpu"))
    assert set(network.state_dict()) == names


@pytest.mark.parametrize("place", ["input", "output"])
def test_the_network_compiles_in_one_piece(place: str) -> None:
    network = make_network(replace(NETWORK, expansion=place), 3).eval()
    apply_performance(network, PerformanceConfig(), torch.device("cpu"))
    inputs = torch.randn(2, 3, 8, 8), torch.rand(2), torch.randn(2, 3, 3, 8, 8)
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*inputs), network(*inputs))
