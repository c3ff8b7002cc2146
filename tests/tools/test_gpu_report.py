"""The report of a machine: in pieces that are kept, with counts and pictures that are right."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from tiny_networks import DIT, UNET
from torch import nn

from latentddm.engine.devices import default_device

TOOLS = Path(__file__).parents[2] / "tools"
CPU = torch.device("cpu")


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(TOOLS))
    return importlib.import_module("gpu_report")


@pytest.fixture
def size(report: ModuleType) -> Any:
    tiny = importlib.import_module("bench_train").SIZES["small"]
    return replace(tiny, unet=UNET, dit=DIT, shape=(4, 8, 8), batch=2, draws=(1, 2))


def test_a_second_call_runs_what_is_missing_or_has_failed(
    report: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done: list[str] = []
    broken = {"second"}

    def section(name: str) -> Any:
        def run() -> list[dict[str, Any]]:
            done.append(name)
            if name in broken:
                raise RuntimeError("no kernel")
            return [{"variant": name, "speed": 1.5}]

        return run

    sections = {name: section(name) for name in ("first", "second", "third")}
    report.run_sections(sections, 60, "a machine", tmp_path)
    text = (tmp_path / "gpu_report.md").read_text()
    assert "no kernel" in text
    broken.clear()
    report.run_sections(sections, 60, "a machine", tmp_path)
    assert done == ["first", "second", "third", "second"]
    content = json.loads((tmp_path / "gpu_report.json").read_text())
    assert set(content["results"]) == set(sections)
    assert not content["problems"]
    assert "load" in content["conditions"]["second"]
    report.run_sections(sections, -1, "another machine or other code", tmp_path)  # no time
    assert len(done) == 4
    assert "run the same command again" in capsys.readouterr().out


def test_the_products_of_a_step_are_counted(report: ModuleType) -> None:
    flops = importlib.import_module("gpu_flops")
    layers = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 4))
    x = torch.randn(32, 8)
    forward = 2 * 32 * (8 * 16 + 16 * 4)
    weights, activations = forward, 2 * 32 * 16 * 4  # no gradient of x
    assert flops.count_flops(lambda: layers(x)) == forward
    assert flops.count_flops(lambda: layers(x).sum().backward()) == forward + weights + activations
    attention = importlib.import_module("latentddm.networks.attention").attention
    parts = [torch.randn(2, 5, 3, 8) for _ in "qkv"]
    assert flops.count_flops(lambda: attention(*parts)) == 2 * (2 * 2 * 3 * 5 * 5 * 8)


def test_the_share_of_the_peak_is_that_of_a_known_card(report: ModuleType) -> None:
    flops = importlib.import_module("gpu_flops")
    assert flops.peak_of("NVIDIA H200") == flops.peak_of("NVIDIA H100 80GB HBM3") == 989e12
    assert flops.peak_of("NVIDIA H100 PCIe") < flops.peak_of("NVIDIA H100")
    unknown = ("a card of tomorrow", "NVIDIA L40", "NVIDIA A10G", "NVIDIA RTX A1000")
    assert [flops.peak_of(name) for name in unknown] == [None] * 4


def test_eight_draws_are_eight_times_the_products_where_they_split_off_at_once(
    report: ModuleType, size: Any
) -> None:
    flops = importlib.import_module("gpu_flops")
    rows = {row["variant"]: row for row in flops.bench_flops(size, CPU)}
    assert len(rows) == 2 * (len(flops.EXPANSIONS) + 2)
    per_image = {name: row["gflop_per_image"] for name, row in rows.items()}
    assert per_image["DiT, m = 8"] == pytest.approx(8 * per_image["DiT, m = 1"], rel=0.1)
    assert per_image["UNet, output, m = 8"] < 8 * per_image["UNet, output, m = 1"]
    assert all(
        row["share_of_peak"] == "-" and row["images_per_second"] > 0 for row in rows.values()
    )
    assert "| share_of_peak |" in report.section_text(
        "use", {"use": list(rows.values())}, {"use": ""}, {}
    )


def test_formats_are_compared_by_speed_and_by_what_they_draw(report: ModuleType, size: Any) -> None:
    sampling = importlib.import_module("gpu_sampling")
    rows = {row["variant"]: row for row in sampling.bench_sampling(size, CPU)}
    default, half = rows[sampling.TODAY], rows["ours, bf16"]
    assert default["latent_largest"] == default["levels_largest"] == default["features"] == 0
    assert 0 < half["latent_mean"] < 0.02
    assert half["latent_mean"] < half["latent_largest"] < 0.2
    assert 0 < half["levels_mean"] < 3
    assert half["levels_mean"] < half["levels_largest"]
    theirs = rows["diffusers, bf16"]  # the same modules: the same pictures
    assert theirs["latent_mean"] == pytest.approx(half["latent_mean"], rel=0.3)
    assert default["x_today"] == theirs["x_diffusers"] == 1
    assert {"UNet, output, bf16", "DiT, bf16"} <= set(rows)


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about a machine without CUDA")
def test_a_kernel_that_a_machine_lacks_is_a_dash(report: ModuleType) -> None:
    attention = importlib.import_module("gpu_attention")
    rows = attention.bench_attention(CPU, 64, positions=(16,))
    assert len(rows) == 3 * 2
    for row in rows:
        assert row["xformers_both"] == row["cudnn_forward"] == row["difference_forward"] == "-"
        assert row["sdpa_both"] > row["sdpa_forward"] > 0
        assert row["math_both"] > 0
        assert row["used"] == "sdpa (no CUDA device)"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_every_section_runs_on_a_gpu(report: ModuleType, size: Any) -> None:
    device = default_device()
    sampling, flops = (importlib.import_module(name) for name in ("gpu_sampling", "gpu_flops"))
    rows = {row["variant"]: row for row in sampling.bench_sampling(size, device)}
    assert rows["ours, bf16, CUDA graphs"]["latent_mean"] < 0.02
    assert {"ours, tf32", "ours, fp16", "diffusers, bf16"} <= set(rows)
    shares = {row["variant"]: row["tflop_per_second"] for row in flops.bench_flops(size, device)}
    assert all(shares.values())
    assert "UNet, up1, m = 8, CUDA graphs" in shares
    assert report.graphed_step(
        size, importlib.import_module("bench_train").setting_of(size, device)
    )
