"""Settings of speed and memory change nothing of what is trained."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from tiny_networks import KINDS, UNET, VARIANTS, fresh, gradients, inputs, random_network
from tiny_runs import generator_config, phase
from torch import Tensor

from latentddm.engine.errors import UserError
from latentddm.engine.optimizer import OptimizerConfig
from latentddm.engine.seeding import BatchMasks
from latentddm.engine.task import LoopConfig, Span
from latentddm.engine.trainable_module import TrainableModule
from latentddm.inference.generator import Generator
from latentddm.networks.dropout import RecordedMasks, place_masks
from latentddm.networks.network import NetworkConfig, NetworkModel
from latentddm.networks.unet import UNetConfig
from latentddm.training import performance
from latentddm.training.config import TrainConfig
from latentddm.training.generator import train
from latentddm.training.performance import (
    ForwardOfTensors,
    PerformanceConfig,
    apply_performance,
    describe_performance,
    record_cuda_graphs,
    replace_forward,
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
CPU = torch.device("cpu")
every_kind = pytest.mark.parametrize("config", KINDS.values(), ids=KINDS.keys())


def config(store: Path, output: Path, images: int = 16, **performance: bool) -> TrainConfig:
    loop = LoopConfig(batch_size=8, checkpoint_every=8)
    switches = PerformanceConfig(**performance)
    return generator_config(
        store, output, phase(images), network=NETWORK, loop=loop, performance=switches
    )


def weights(run: Path) -> Tensor:
    network = Generator.load(run).network
    return torch.cat([parameter.flatten() for parameter in network.parameters()])


# Gradients themselves, not the weights after a step: Adam would hide a wrong scale.


@pytest.mark.parametrize("switch", ["two_pass", "checkpointing", "channels_last"])
@pytest.mark.parametrize("name", ["unet, input", "unet, output", "dit, last block", "dit, global"])
def test_a_setting_changes_no_gradient(name: str, switch: str) -> None:
    network = random_network(VARIANTS[name], dropout=0.2)
    expected = torch.cat([gradient.flatten() for gradient in gradients(network)])
    apply_performance(network, PerformanceConfig(**{switch: True}), CPU)
    found = torch.cat([gradient.flatten() for gradient in gradients(network)])
    assert (found - expected).norm() <= 1e-5 * expected.norm()


@every_kind
@pytest.mark.parametrize("parts", [2, 4])
def test_micro_batches_add_up_to_the_gradient_of_the_mean_loss(
    config: NetworkConfig, parts: int
) -> None:
    """As the trainer runs them: each part's mean loss is backpropagated by itself."""
    network = fresh(config, prediction="x0")
    x_t, t, xi = inputs(batch=8)

    def gradient(micro_batches: int) -> Tensor:
        network.zero_grad()
        loop = LoopConfig(batch_size=8, micro_batches=micro_batches)
        trainable = TrainableModule(
            network, OptimizerConfig(), loop, Span(0, 8), Accelerator(cpu=True)
        )
        for part in trainable.micro_batches(8):
            draws = trainable.wrapped(x_t[part], t[part], xi[part])
            trainable.backward((draws - x_t[part, None]).square().mean((1, 2, 3, 4)).mean())
        return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])

    (network(x_t, t, xi) - x_t[:, None]).square().mean().backward()
    expected = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
    for count in (1, parts):
        assert (gradient(count) - expected).norm() <= 1e-5 * expected.norm()


# Runs


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


def test_every_switch_reaches_a_run(tiny_store: Path, tmp_path: Path) -> None:
    plain = train(config(tiny_store, tmp_path / "plain"))
    switches = {"two_pass": True, "checkpointing": True, "channels_last": True}
    switched = train(config(tiny_store, tmp_path / "switched", **switches))
    torch.testing.assert_close(weights(switched.path), weights(plain.path), rtol=1e-3, atol=1e-5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about a machine without CUDA")
def test_cuda_graphs_without_cuda_are_refused_if_a_config_demands_them(
    tiny_store: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"performance\.cuda_graphs is true, but there is no CUDA"):
        train(config(tiny_store, tmp_path / "run", cuda_graphs=True))


OBSTACLES: dict[str, dict[str, Any]] = {
    "processes": {"processes": 2},
    "network.times": {"times": 2},
    "two_pass": {"two_pass": True},
    "checkpointing": {"checkpointing": True},
    "compile": {"compile": True},
}


def recorded_on_cuda(
    monkeypatch: pytest.MonkeyPatch,
    graphs: bool | None,
    processes: int = 1,
    times: int = 1,
    failure: str = "",
    **switches: bool,
) -> list[str]:
    """The names of the arguments of the passes that are recorded, as on a CUDA device.

    failure: the message with which the device refuses the recording.
    """
    names: list[str] = []

    def record(network: NetworkModel, examples: dict[str, Tensor], allow_unused: bool) -> None:
        if failure:
            raise RuntimeError(failure)
        names.extend(examples)

    monkeypatch.setattr(performance, "replace_by_graphs", record)
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *size, **_: zeros(*size))
    trainable = SimpleNamespace(
        network=fresh(replace(UNET, times=times)),
        accelerator=SimpleNamespace(device=torch.device("cuda"), num_processes=processes),
        loop=LoopConfig(batch_size=4),
    )
    settings = PerformanceConfig(cuda_graphs=graphs, **switches)
    record_cuda_graphs(trainable, 2, (4, 8, 8), settings)  # type: ignore[arg-type]
    return names


def test_passes_are_recorded_on_cuda_unless_the_config_says_no(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert recorded_on_cuda(monkeypatch, None) == ["x_t", "t", "xi"]
    assert recorded_on_cuda(monkeypatch, True) == ["x_t", "t", "xi"]
    assert recorded_on_cuda(monkeypatch, False) == []


@pytest.mark.parametrize("name", OBSTACLES)
def test_what_no_graph_repeats_trains_without_and_is_refused_on_demand(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert recorded_on_cuda(monkeypatch, None, **OBSTACLES[name]) == []
    with pytest.raises(UserError, match=name):
        recorded_on_cuda(monkeypatch, True, **OBSTACLES[name])


def test_a_device_that_refuses_the_recording_stops_no_training_that_did_not_ask_for_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert recorded_on_cuda(monkeypatch, None, failure="capture failed\ndetails") == []
    assert "run one by one: capture failed" in caplog.text
    assert "details" not in caplog.text
    with pytest.raises(RuntimeError, match="capture failed"):
        recorded_on_cuda(monkeypatch, True, failure="capture failed")


@every_kind
def test_a_recorded_pass_serves_training_with_the_recorded_arguments_only(
    config: NetworkConfig,
) -> None:
    """The part of CUDA graphs that a CPU can check: which calls are sent to the graph."""
    network, (x_t, t, xi) = random_network(config, classes=2), inputs()
    labels = torch.tensor([0, 1])
    expected, mean = network(x_t, t, xi, labels), network(x_t, t, None, labels)
    for names, arguments, result in (
        (("x_t", "t", "xi", "labels"), (x_t, t, xi, labels), expected),
        (("x_t", "t", "labels"), (x_t, t, None, labels), mean),
    ):
        made, calls = random_network(config, classes=2), []
        passes = ForwardOfTensors(made, names)
        replace_forward(made, names, lambda *g, p=passes, c=calls: (c.append(len(g)), p(*g))[1])
        assert torch.equal(made(*arguments), result)
        assert calls == [len(names)]
        other = (x_t, t, None, labels) if "xi" in names else (x_t, t, xi, labels)
        assert torch.equal(made(*other), mean if "xi" in names else expected)
        assert torch.equal(made.eval()(*arguments), result)
        assert calls == [len(names)]


@every_kind
def test_recorded_masks_stay_in_their_memory_and_are_those_of_the_rows(
    config: NetworkConfig,
) -> None:
    """The part of dropout in CUDA graphs that a CPU can check."""
    network, recorded = random_network(config, dropout=0.3), RecordedMasks(2, CPU)
    place_masks(network, recorded)
    network(*inputs())  # the recording, in which the layers take their memory
    places = [kept.data_ptr() for kept, _ in recorded._masks.values()]
    assert places
    outputs = []
    for images in (0, 8):
        draw = BatchMasks(0, images, 2, Accelerator(cpu=True)).draw
        masks = partial(draw, slice(0, 2))
        recorded.refill(masks)
        found = network(*inputs())
        other = random_network(config, dropout=0.3)
        place_masks(other, masks)
        assert torch.equal(found, other(*inputs()))
        outputs.append(found)
    assert not torch.equal(*outputs)
    assert [kept.data_ptr() for kept, _ in recorded._masks.values()] == places


@pytest.mark.parametrize("kept", [True, False])
def test_micro_batches_add_up_over_a_backward_pass_that_reuses_its_memory(kept: bool) -> None:
    """As a replayed CUDA graph does; gradients that are not kept would be that memory itself."""
    network = fresh(UNET, prediction="x0")
    x_t, t, xi = inputs(batch=8)
    (network(x_t, t, xi) - x_t[:, None]).square().mean().backward()
    expected = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
    network.zero_grad()

    weights = [parameter for parameter in network.parameters() if parameter.requires_grad]
    memory = [torch.zeros_like(weight) for weight in weights]
    original = network.forward

    class Replay(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *tensors: Tensor) -> Tensor:
            with torch.enable_grad():
                ctx.output = original(*tensors[:3])
            return ctx.output.detach()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
            for place, found in zip(
                memory, torch.autograd.grad(ctx.output, weights, gradient), strict=True
            ):
                place.copy_(found)
            return (None, None, None, *(place.detach() for place in memory))

    loop = LoopConfig(batch_size=8, micro_batches=4)
    trainable = TrainableModule(network, OptimizerConfig(), loop, Span(0, 8), Accelerator(cpu=True))
    replace_forward(network, ("x_t", "t", "xi"), lambda *given: Replay.apply(*given, *weights))
    if kept:
        trainable.keep_gradients()
    for part in trainable.micro_batches(8):
        draws = trainable.wrapped(x_t[part], t[part], xi[part])
        trainable.backward((draws - x_t[part, None]).square().mean((1, 2, 3, 4)).mean())
    found = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
    close = float((found - expected).norm()) <= 1e-5 * float(expected.norm())
    assert close == kept
    if kept:
        trainable.step(0)
        assert all(weight.grad is not None and not weight.grad.any() for weight in weights)


def test_the_line_at_the_start_names_what_is_on() -> None:
    config = PerformanceConfig(two_pass=True, channels_last=True)
    line = describe_performance(config, "bf16", CPU)
    assert line == (
        "cpu, bf16 autocast; attention sdpa (no CUDA device); two-pass gradient, channels_last"
    )


# Formats and names


@pytest.mark.parametrize("place", ["input", "up0"])
def test_channels_last_is_the_format_of_the_feature_maps_to_the_end(place: str) -> None:
    network = fresh(replace(UNET, expansion=place))
    apply_performance(network, PerformanceConfig(channels_last=True), CPU)
    formats = []
    for part in (*network.trunk, *network.draw_parts):
        part.register_forward_hook(
            lambda _, __, state: formats.append(
                state.x.is_contiguous(memory_format=torch.channels_last)
            )
        )
    network(*inputs())
    assert formats
    assert all(formats)


@every_kind
def test_switches_leave_the_names_of_the_weights_alone(config: NetworkConfig) -> None:
    network = fresh(config)
    names = set(network.state_dict())
    everything = PerformanceConfig(
        two_pass=True, checkpointing=True, channels_last=True, compile=True
    )
    apply_performance(network, everything, CPU)
    assert set(network.state_dict()) == names
    assert network.one_draw_at_a_time
    assert network.gradient_checkpointing
    assert network.memory_format == torch.channels_last


@every_kind
def test_every_class_that_is_sharded_by_itself_is_in_the_network(config: NetworkConfig) -> None:
    """FSDP gathers the modules of these classes one by one; a wrong name would shard nothing."""
    network = fresh(config)
    classes = {type(module).__name__ for module in network.modules()}
    assert network._no_split_modules
    assert classes.issuperset(network._no_split_modules)


def test_latents_of_another_shape_are_refused_with_the_key(
    tiny_store: Path, tmp_path: Path
) -> None:
    wrong = replace(config(tiny_store, tmp_path / "run"), network=replace(NETWORK, patch_size=5))
    with pytest.raises(UserError) as caught:
        train(wrong)
    assert "network" in str(caught.value)
    assert "patch_size" in str(caught.value)
    assert not (tmp_path / "run").exists()
