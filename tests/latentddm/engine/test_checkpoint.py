"""A checkpoint is valid or it is not used; what is loaded equals what was saved, to the bit."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch import nn

from latentddm.engine.checkpoint import newest_checkpoint, save_checkpoint, valid_checkpoints
from latentddm.engine.errors import RequestError


def trained(seed: int = 0) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    step(module, optimizer)
    return module, optimizer


def step(module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    module(torch.ones(2, 3)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def save(folder: Path, images: int, keep: int = 9) -> None:
    module, optimizer = trained(images)
    save_checkpoint(folder, images, {"network": module}, {"optimizer": optimizer}, keep)


def test_training_goes_on_bit_equal_from_a_checkpoint(tmp_path: Path) -> None:
    module, optimizer = trained()
    saved = save_checkpoint(tmp_path, 10, {"network": module}, {"optimizer": optimizer}, keep=2)
    other, other_optimizer = trained(seed=1)
    saved.load_module("network", other)
    saved.load_optimizer("optimizer", other_optimizer)
    step(module, optimizer)
    step(other, other_optimizer)
    for a, b in zip(module.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("damage", ["cut", "bit", "missing", "state", "version"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 10)
    save(tmp_path, 20)
    newest = tmp_path / "images-000000000020"
    weights, state = newest / "network.safetensors", newest / "state.json"
    data = weights.read_bytes()
    if damage == "cut":
        weights.write_bytes(data[:-4])
    elif damage == "bit":
        weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "missing":
        weights.unlink()
    elif damage == "state":
        state.write_text(state.read_text()[:20])
    else:
        state.write_text(state.read_text().replace('"version": 1', '"version": 99'))
    with caplog.at_level(logging.WARNING, "latentddm"):
        found = newest_checkpoint(tmp_path)
    assert found is not None
    assert found.images == 10
    assert "images-000000000020" in caplog.text


def test_retention_keeps_the_newest_valid_ones(tmp_path: Path) -> None:
    for images in (10, 20, 30):
        save(tmp_path, images, keep=2)
    assert [checkpoint.images for checkpoint in valid_checkpoints(tmp_path)] == [30, 20]


def test_retention_does_not_count_a_torn_one(tmp_path: Path) -> None:
    save(tmp_path, 10)
    save(tmp_path, 20)
    (tmp_path / "images-000000000020" / "network.safetensors").write_bytes(b"")
    save(tmp_path, 30, keep=2)
    assert [checkpoint.images for checkpoint in valid_checkpoints(tmp_path)] == [30, 10]


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    save(tmp_path, 10)
    found = newest_checkpoint(tmp_path)
    assert found is not None
    with pytest.raises(RequestError, match="belongs to another network"):
        found.load_module("network", nn.Linear(3, 4))


def test_no_checkpoint_is_no_error(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "none") is None
