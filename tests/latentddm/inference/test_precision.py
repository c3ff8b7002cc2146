"""Half precision changes a picture by little, and a recorded network is the network."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_networks import KINDS, SHAPE, VARIANTS, inputs, random_network
from tiny_runs import generator_config
from torch import Tensor

from latentddm.cli import main
from latentddm.diffusion.sampling import sample, time_grid
from latentddm.engine.errors import UserError
from latentddm.inference.generator import Generator, SamplingConfig
from latentddm.inference.precision import (
    EvaluatedNetwork,
    arithmetic,
    convert_products,
    recorder_of,
)
from latentddm.networks.layers import TimeEmbedding
from latentddm.networks.network import NetworkConfig, NetworkModel
from latentddm.training.generator import train

every_kind = pytest.mark.parametrize("config", KINDS.values(), ids=KINDS.keys())


def frozen(config: NetworkConfig) -> NetworkModel:
    return random_network(config).eval().requires_grad_(False)


def drawn(network: torch.nn.Module, device: str = "cpu") -> Tensor:
    noise = torch.randn(8, *SHAPE, generator=torch.Generator().manual_seed(0)).to(device)
    generators = [torch.Generator().manual_seed(seed) for seed in range(8)]
    return sample(network, noise, time_grid(4), churn=0.5, generator=generators)


def assert_close(found: Tensor, expected: Tensor, mean: float, largest: float) -> None:
    """Mean and largest difference, in standard deviations of what is expected."""
    apart = (found - expected).abs() / expected.std()
    assert float(apart.mean()) < mean, float(apart.mean())
    assert float(apart.max()) < largest, float(apart.max())
    assert float(apart.max()) > 0  # another format was in use


@every_kind
def test_samples_in_bf16_are_close_to_those_in_float32(config: NetworkConfig) -> None:
    network = frozen(config)
    expected = drawn(network)
    half = copy.deepcopy(network)
    convert_products(half, "bf16")
    found = drawn(EvaluatedNetwork(half, "bf16"))
    assert found.dtype == torch.float32
    assert_close(found, expected, mean=0.02, largest=0.2)


@pytest.mark.parametrize("name", VARIANTS)
def test_converted_weights_are_those_that_autocast_would_convert(name: str) -> None:
    network, (x_t, t, xi) = frozen(VARIANTS[name]), inputs()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = network(x_t, t, xi[:, 0]).float()
    convert_products(network, "bf16")
    assert torch.equal(EvaluatedNetwork(network, "bf16")(x_t, t, xi[:, 0]), expected)


@every_kind
@pytest.mark.parametrize("precision", [None, "float32", "tf32"])
def test_on_a_cpu_the_formats_of_float32_are_one(
    config: NetworkConfig, precision: str | None
) -> None:
    network = frozen(config)
    evaluated = EvaluatedNetwork(network, precision)  # type: ignore[arg-type]
    assert torch.equal(drawn(evaluated), drawn(network))


def test_the_frequencies_of_the_time_keep_their_precision() -> None:
    """In bfloat16 1000 t would be rounded by up to 2, which is a random phase."""
    embedding, t = TimeEmbedding(32), torch.linspace(0.01, 1, 50)
    expected = embedding(t).detach()
    half = copy.deepcopy(embedding).to(torch.bfloat16)
    assert half.frequencies.dtype == torch.float32
    assert torch.equal(half.frequencies, embedding.frequencies)
    with torch.autocast("cpu", torch.bfloat16):
        found = half(t).detach().float()
    assert float((found - expected).norm() / expected.norm()) < 0.02


def test_the_setting_of_tf32_is_as_before_after_an_evaluation() -> None:
    backends = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [backend.allow_tf32 for backend in backends]
    for precision, allowed in (("tf32", True), ("float32", False)):
        with arithmetic(precision, "cpu"):  # type: ignore[arg-type]
            assert [backend.allow_tf32 for backend in backends] == [allowed, allowed]
        assert [backend.allow_tf32 for backend in backends] == before


@every_kind
def test_a_network_is_recorded_once_for_each_shape(config: NetworkConfig) -> None:
    made: list[int] = []

    def record(
        function: Callable[..., Tensor], examples: Sequence[Tensor]
    ) -> Callable[..., Tensor]:
        made.append(len(examples))
        return function

    network, (x_t, t, xi) = frozen(config), inputs(batch=4)
    evaluated = EvaluatedNetwork(network, recorder=record)
    for _ in range(2):
        assert torch.equal(evaluated(x_t, t, xi[:, 0]), network(x_t, t, xi[:, 0]))
        assert torch.equal(evaluated(x_t[:2], t[:2], xi[:2, 0]), network(x_t[:2], t[:2], xi[:2, 0]))
        assert torch.equal(evaluated(x_t, t), network(x_t, t))
    assert made == [3, 3, 2]


# From the command line


@pytest.fixture(scope="module")
def run(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("precision") / "run"
    return train(generator_config(tiny_store, output)).path


def command(run: Path, output: Path, *more: str) -> list[str]:
    return ["sample", str(run), "--num", "4", "--output", str(output), *more]


def pictures(folder: Path) -> np.ndarray:
    paths = sorted(folder.glob("*.png"))
    return np.stack([np.asarray(Image.open(path)).astype(int) for path in paths])


def test_pictures_in_bf16_differ_by_a_few_levels(run: Path, tmp_path: Path) -> None:
    full, half = tmp_path / "full", tmp_path / "half"
    assert main(command(run, full, "--decode")) == 0
    assert main(command(run, half, "--decode", "--precision", "bf16")) == 0
    apart = np.abs(pictures(full / "images") - pictures(half / "images"))
    assert 0 < apart.mean() < 2
    assert apart.max() < 20
    assert json.loads((half / "samples.json").read_text())["precision"] == "bf16"
    assert json.loads((half / "images" / "decode.json").read_text())["dtype"] == "bfloat16"
    assert "precision" not in json.loads((full / "samples.json").read_text())
    decoded = ["decode", str(full / "latents.safetensors"), "--output", str(tmp_path / "again")]
    assert main([*decoded, "--precision", "bf16"]) == 0
    assert np.abs(pictures(tmp_path / "again") - pictures(full / "images")).mean() < 2


def test_samples_of_another_precision_do_not_mix(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(run, tmp_path / "samples")) == 0
    assert main(command(run, tmp_path / "samples", "--precision", "bf16")) == 2
    assert "precision" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about a machine without CUDA")
@pytest.mark.parametrize("option", [["--precision", "fp16"], ["--cuda-graphs"]])
def test_what_a_cpu_lacks_is_refused_before_anything_is_written(
    run: Path, tmp_path: Path, option: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(run, tmp_path / "samples", *option)) == 2
    assert option[-1].strip("-") in capsys.readouterr().err
    assert not (tmp_path / "samples").exists()
    with pytest.raises(UserError):
        recorder_of(True, torch.device("cpu"))


# On a GPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", [None, "tf32", "bf16", "fp16"])
def test_a_recorded_network_draws_the_same(run: Path, precision: str | None) -> None:
    config = SamplingConfig(steps=4, churn=0.5)
    latents = [
        Generator.load(run, "cuda", precision=precision, cuda_graphs=graphs).draw(7, config)  # type: ignore[arg-type]
        for graphs in (False, True)
    ]
    torch.testing.assert_close(latents[1], latents[0], rtol=1e-3, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@every_kind
@pytest.mark.parametrize(
    ("precision", "mean", "largest"),
    [("tf32", 0.005, 0.05), ("bf16", 0.02, 0.2), ("fp16", 0.005, 0.05)],
)
def test_formats_of_a_gpu_are_close_to_float32(
    config: NetworkConfig, precision: str, mean: float, largest: float
) -> None:
    network = frozen(config).cuda()
    expected = drawn(EvaluatedNetwork(network, "float32"), "cuda")
    convert_products(network, precision)  # type: ignore[arg-type]
    found = drawn(EvaluatedNetwork(network, precision), "cuda")  # type: ignore[arg-type]
    assert_close(found, expected, mean, largest)
