"""An average reconstructed after training equals the one that would have been tracked."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from messages import raises_naming
from safetensors.torch import load_file
from tiny_training import TinyConfig, TinyNetwork, loop_config, train_tiny

from latentddm.engine.ema import EMA, Averages, EMAConfig, power_exponent
from latentddm.engine.errors import UserError
from latentddm.engine.posthoc_ema import (
    Profile,
    Snapshot,
    fit_profile,
    gather_snapshot,
    profile_product,
    reconstruct,
    snapshot_positions,
    surplus_positions,
    write_snapshot,
)


def density(profile: Profile, time: np.ndarray) -> np.ndarray:
    inside = np.where(time <= profile.images, (time / profile.images) ** profile.gamma, 0.0)
    return (profile.gamma + 1) / profile.images * inside


def test_the_product_of_two_profiles_is_their_integral() -> None:
    time = (np.arange(400_000) + 0.5) / 400_000 * 3
    for first, second in (
        (Profile(3.0, 6.9), Profile(3.0, 16.97)),
        (Profile(2.0, 6.9), Profile(3.0, 2.5)),
        (Profile(3.0, 6.9), Profile(1.0, 2.5)),
    ):
        integral = (density(first, time) * density(second, time)).sum() * 3 / len(time)
        assert profile_product(first, second) == pytest.approx(integral, rel=1e-4)
        assert profile_product(first, second) == profile_product(second, first)


def test_a_tracked_profile_is_its_own_combination() -> None:
    profiles = [Profile(n, power_exponent(w)) for n in (1, 2, 3) for w in (0.05, 0.10)]
    coefficients, error = fit_profile(profiles, profiles[-1])
    assert error < 1e-6
    np.testing.assert_allclose(coefficients, np.eye(6)[-1], atol=1e-5)


@pytest.mark.parametrize("width", [0.06, 0.08, 0.12])
def test_a_width_reconstructed_from_two_others_equals_the_tracked_one(
    tmp_path: Path, width: float
) -> None:
    steps, batch = 640, 8
    torch.manual_seed(0)
    module = TinyNetwork(16)
    tracked = EMA(module, width)
    averages = Averages(module, EMAConfig(widths=(0.10, 0.05), snapshots=16))
    for step in range(1, steps + 1):
        for parameter in module.parameters():  # drift and noise
            parameter.data.add_(0.01 * (torch.randn_like(parameter) + 0.2))
        averages.update(step * batch, batch)
        tracked.update(step * batch, batch)
        if step % (steps // 16) == 0:
            write_snapshot(tmp_path, step * batch, gather_snapshot(averages), keep=16)
    sources = [Snapshot(tmp_path, images) for images in snapshot_positions(tmp_path)]
    pairs = [(source, w) for source in sources for w in source.widths]
    profiles = [Profile(source.images, power_exponent(w)) for source, w in pairs]
    coefficients, _ = fit_profile(profiles, Profile(steps * batch, power_exponent(width)))
    for name, expected in tracked.module.named_parameters():
        made = sum(c * s.tensor(w, name) for c, (s, w) in zip(coefficients, pairs, strict=True))
        error = torch.linalg.vector_norm(made - expected) / torch.linalg.vector_norm(expected)
        assert error < 1e-2, name
        other = dict(averages.first.named_parameters())[name]
        distance = torch.linalg.vector_norm(other - expected)
        assert torch.linalg.vector_norm(made - expected) < distance / 4, name


def config(output: Path, widths: tuple[float, ...], snapshots: int) -> TinyConfig:
    return TinyConfig(
        output=str(output),
        loop=loop_config(96, log_every=96 * 8, checkpoint_every=96 * 8),
        ema=EMAConfig(widths=widths, snapshots=snapshots),
    )


def test_a_run_gives_any_width_in_a_file_with_the_keys_of_the_network(tmp_path: Path) -> None:
    run = train_tiny(config(tmp_path / "run", (0.10, 0.05), 16))
    directly = train_tiny(config(tmp_path / "directly", (0.08,), 0))
    path, error = reconstruct(run, 0.08)
    assert error < 0.01
    made = load_file(path)
    newest = sorted(directly.checkpoints.iterdir())[-1]
    expected = load_file(newest / "ema.safetensors")
    assert set(made) == set(expected)
    for name, tensor in expected.items():
        assert torch.linalg.vector_norm(made[name] - tensor) < 1e-2 * tensor.norm(), name
    output, _ = reconstruct(run, 0.06, tmp_path / "chosen.safetensors")
    assert output.is_file()
    with raises_naming(UserError, str(directly.path), "ema.snapshots"):
        reconstruct(directly, 0.08)
    with raises_naming(UserError, "0.5", "[0.005, 0.28]"):
        reconstruct(run, 0.5)


def test_too_few_snapshots_are_refused(tmp_path: Path) -> None:
    run = train_tiny(config(tmp_path / "run", (0.10, 0.05), 2))
    with raises_naming(UserError, "2 snapshots", str(run.path), "width 0.2", "ema.snapshots"):
        reconstruct(run, 0.2)


def test_weights_out_of_the_range_of_float16_stay_float32(tmp_path: Path) -> None:
    module = TinyNetwork(4)
    module.output.weight.data.fill_(1e6)
    averages = Averages(copy.deepcopy(module), EMAConfig(widths=(0.1,)))
    tensors = gather_snapshot(averages)
    assert tensors["0.1/output.weight"].dtype == torch.float32
    assert tensors["0.1/input.linear.weight"].dtype == torch.float16


def test_thinning_keeps_the_last_and_even_spacing() -> None:
    assert surplus_positions([1, 2, 3, 4], 4) == []
    positions = list(range(1, 17))
    dropped = surplus_positions(positions, 8)
    kept = [position for position in positions if position not in dropped]
    assert kept[-1] == 16
    assert len(kept) == 8
    assert max(np.diff([0, *kept])) <= 3
