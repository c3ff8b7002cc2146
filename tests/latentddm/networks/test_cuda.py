"""A GPU computes what the CPU computes: the network, its gradients, samples, distances."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from tiny_networks import KINDS, SHAPE, VARIANTS, inputs, random_network
from tiny_runs import PLAIN, generator_config, phase

from latentddm.diffusion.sampling import sample, time_grid
from latentddm.engine.errors import UserError
from latentddm.engine.optimizer import OptimizerConfig
from latentddm.engine.task import LoopConfig, Span
from latentddm.engine.trainable_module import TrainableModule
from latentddm.evaluation.distances import energy_estimate, frechet_estimate, kid_estimate
from latentddm.inference.generator import Generator
from latentddm.networks.network import NetworkConfig, NetworkModel
from latentddm.networks.unet import UNetConfig
from latentddm.training.generator import train
from latentddm.training.performance import (
    PerformanceConfig,
    apply_performance,
    record_cuda_graphs,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


GPU_VARIANTS = [
    "unet, input",
    "unet, middle",
    "unet, output",
    "dit",
    "dit, last block",
    "dit, global",
]


def pair(config: NetworkConfig) -> tuple[NetworkModel, NetworkModel]:
    """A network on the CPU, and the same on the GPU with the default performance settings."""
    network, device = random_network(config), torch.device("cuda")
    other = copy.deepcopy(network).to(device)
    apply_performance(other, PerformanceConfig(), device)
    return network, other


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.cpu() - expected).norm() / expected.norm())


@pytest.mark.parametrize("name", GPU_VARIANTS)
def test_draws_and_gradients_are_those_of_the_cpu(name: str) -> None:
    network, other = pair(VARIANTS[name])
    x_t, t, xi = inputs(batch=4)
    expected, found = network(x_t, t, xi), other(x_t.cuda(), t.cuda(), xi.cuda())
    assert relative(found.detach(), expected.detach()) < 2e-3
    expected.square().mean().backward()
    found.square().mean().backward()
    for (name, ours), theirs in zip(network.named_parameters(), other.parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert relative(theirs.grad, ours.grad) < 2e-2, name


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS.keys())
def test_samples_are_those_of_the_cpu(config: NetworkConfig) -> None:
    network, other = (each.eval() for each in pair(config))
    noise = torch.randn(4, *SHAPE)
    drawn = []
    for each, device in ((network, "cpu"), (other, "cuda")):
        generators = [torch.Generator().manual_seed(seed) for seed in range(4)]
        drawn.append(sample(each, noise.to(device), time_grid(4), churn=0.5, generator=generators))
    assert relative(drawn[1], drawn[0]) < 5e-3


def test_distances_and_their_influences_are_those_of_the_cpu() -> None:
    first, second = torch.randn(300, 20), torch.randn(200, 20) + 0.1
    for estimate in (frechet_estimate, energy_estimate, kid_estimate):
        expected, found = estimate(first, second), estimate(first.cuda(), second.cuda())
        assert found.value == pytest.approx(expected.value, rel=1e-9, abs=1e-12)
        torch.testing.assert_close(found.influence.cpu(), expected.influence, rtol=1e-6, atol=1e-9)


def trained(
    store: Path, output: Path, cuda_graphs: bool | None, micro_batches: int = 1, **changes: object
) -> torch.Tensor:
    """The averaged weights after six steps; changes: of the network."""
    network = UNetConfig(
        channels=32, multipliers=(1,), blocks=1, attention_levels=(0,), expansion="up0"
    )
    config = generator_config(
        store,
        output,
        phase(24, PLAIN),
        phase(24),
        network=replace(network, **changes),  # type: ignore[arg-type]
        loop=LoopConfig(batch_size=8, micro_batches=micro_batches, checkpoint_every=24),
        precision="bf16",
        performance=PerformanceConfig(cuda_graphs=cuda_graphs),
    )
    parameters = Generator.load(train(config).path).network.parameters()
    return torch.cat([parameter.flatten() for parameter in parameters])


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_a_run_learns_the_same_with_cuda_graphs(
    tiny_store: Path, tmp_path: Path, dropout: float, micro_batches: int
) -> None:
    plain, recorded = (
        trained(tiny_store, tmp_path / str(graphs), graphs, micro_batches, dropout=dropout)
        for graphs in (False, True)
    )
    torch.testing.assert_close(recorded, plain, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("draws", [0, 3], ids=["without xi", "3 draws"])
@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS.keys())
def test_gradients_are_the_same_with_cuda_graphs(config: NetworkConfig, draws: int) -> None:
    network = random_network(config).cuda()
    if not draws:
        for parameter in network.draw_parameters():
            parameter.requires_grad_(False)
    x_t, t, xi = (each.cuda() for each in inputs(batch=4))
    arguments = (x_t, t, xi) if draws else (x_t, t)

    def gradients() -> torch.Tensor:
        network.zero_grad()
        network(*arguments).square().mean().backward()
        found = [p.grad.flatten() for p in network.parameters() if p.grad is not None]
        return torch.cat(found).clone()

    expected = gradients()
    loop = LoopConfig(batch_size=4)
    trainable = TrainableModule(network, OptimizerConfig(), loop, Span(0, 8), Accelerator())
    record_cuda_graphs(trainable, draws, SHAPE, PerformanceConfig(cuda_graphs=True))
    assert relative(gradients(), expected.cpu()) < 1e-4
    evaluated = network.eval()(*arguments)
    assert evaluated.shape == (xi.shape if draws else x_t.shape)


def test_what_no_graph_repeats_is_refused(tiny_store: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"network\.times=2"):
        trained(tiny_store, tmp_path / "run", cuda_graphs=True, times=2)
