"""The costs of a config, computed without a GPU and without a store: those of a real step."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from tiny_networks import DIT, UNET

from latentddm.diffusion.schedules import FlowSchedule
from latentddm.engine.ema import EMAConfig
from latentddm.networks.network import NetworkConfig, make_network
from latentddm.training.config import TrainConfig
from latentddm.training.objective import DistributionalObjective
from latentddm.training.performance import PerformanceConfig

SHAPE = (4, 8, 8)
DDM = DistributionalObjective(draws=4)


@pytest.fixture
def costs(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "tools"))
    return importlib.import_module("config_costs")


def config(network: NetworkConfig, performance: PerformanceConfig | None = None) -> TrainConfig:
    return TrainConfig(
        network=network,
        performance=performance or PerformanceConfig(),
        ema=EMAConfig(widths=(0.1, 0.05), snapshots=0),
    )


@pytest.mark.parametrize("network", [UNET, DIT], ids=["unet", "dit"])
def test_the_operations_are_those_of_a_step_on_numbers(
    costs: ModuleType, network: NetworkConfig
) -> None:
    flops = importlib.import_module("gpu_flops")
    real = make_network(network, SHAPE)
    x0, noise = torch.randn(2, *SHAPE), torch.randn(2, *SHAPE)
    t, xi = torch.rand(2), torch.randn(2, 4, *SHAPE)

    def step() -> None:
        x_t = (1 - t[:, None, None, None]) * x0 + t[:, None, None, None] * noise
        DDM.terms(real(x_t, t, xi), x0, t, FlowSchedule()).loss.mean().backward()

    counted = costs.phase_costs(config(network), DDM, SHAPE)
    assert counted.image_flops == pytest.approx(flops.count_flops(step) / 2, rel=1e-3)
    # Weight, gradient, two moments and two averages, of four bytes.
    assert counted.state_bytes == 6 * 4 * real.num_parameters()


def test_memory_grows_with_images_and_draws_and_shrinks_by_checkpointing(
    costs: ModuleType,
) -> None:
    usual = costs.phase_costs(config(UNET), DDM, SHAPE)
    assert usual.memory(2) - usual.memory(1) == usual.image_bytes > 0
    more = costs.phase_costs(config(UNET), replace(DDM, draws=8), SHAPE)
    assert more.image_bytes > usual.image_bytes
    saving = config(UNET, PerformanceConfig(checkpointing=True))
    assert costs.phase_costs(saving, DDM, SHAPE).image_bytes < usual.image_bytes / 2


def test_a_wrong_request_is_refused_in_a_sentence(
    costs: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert costs.main(["celebahq256.yaml", "--shape", "4,32,32", "--card", "abacus"]) == 2
    assert "--card abacus is not known" in capsys.readouterr().err
    assert costs.main(["celebahq256.yaml", "--shape", "4,30,31"]) == 2
    assert "--shape is [4, 30, 31]" in capsys.readouterr().err
    for shape in ("4,32", "0,32,32", "4,32,32,1"):
        assert costs.main(["celebahq256.yaml", "--shape", shape]) == 2
        assert "--shape must be channels, height and width" in capsys.readouterr().err
