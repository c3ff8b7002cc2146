"""A damaged checkpoint is never used; a loaded state is bit-equal to the saved one."""

from __future__ import annotations

import errno
import logging
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from messages import raises_naming
from safetensors import SafetensorError
from torch import nn

from latentddm.engine import checkpoint, known_digests
from latentddm.engine.atomic_io import TEMPORARY_SUFFIX, sha256_of
from latentddm.engine.checkpoint import (
    TrainingState,
    gather_module,
    gather_optimizer,
    newest_checkpoint,
    save_checkpoint,
    valid_checkpoints,
)
from latentddm.engine.errors import JobError, UserError
from latentddm.engine.known_digests import KnownDigests


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


def state_of(module: nn.Module, optimizer: torch.optim.Optimizer, images: int) -> TrainingState:
    tensors = {"network": gather_module(module), "optimizer": gather_optimizer(optimizer)}
    return TrainingState(images, tensors)


def save(folder: Path, images: int, keep: int = 9) -> None:
    save_checkpoint(folder, state_of(*trained(images), images), keep)


def test_training_continues_bit_equal_from_a_checkpoint(tmp_path: Path) -> None:
    module, optimizer = trained()
    saved = save_checkpoint(tmp_path, state_of(module, optimizer, 10), keep=2)
    other, other_optimizer = trained(seed=1)
    saved.load_module("network", other)
    saved.load_optimizer("optimizer", other_optimizer)
    step(module, optimizer)
    step(other, other_optimizer)
    for a, b in zip(module.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("damage", ["truncated", "bit", "missing", "state", "version"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 10)
    save(tmp_path, 20)
    newest = tmp_path / "images-000000000020"
    weights, state = newest / "network.safetensors", newest / "state.json"
    data = weights.read_bytes()
    if damage == "truncated":
        weights.write_bytes(data[:-4])
    elif damage == "bit":
        weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "missing":
        weights.unlink()
    elif damage == "state":
        state.write_text(state.read_text()[:20])
    else:
        state.write_text(state.read_text().replace('"version": 2', '"version": 99'))
    with caplog.at_level(logging.WARNING, "latentddm"):
        found = newest_checkpoint(tmp_path)
    assert found is not None
    assert found.images == 10
    assert "images-000000000020" in caplog.text


def test_retention_keeps_the_newest_valid_ones(tmp_path: Path) -> None:
    for images in (10, 20, 30):
        save(tmp_path, images, keep=2)
    assert [found.images for found in valid_checkpoints(tmp_path)] == [30, 20]


def test_retention_does_not_count_a_damaged_one(tmp_path: Path) -> None:
    save(tmp_path, 10)
    save(tmp_path, 20)
    (tmp_path / "images-000000000020" / "network.safetensors").write_bytes(b"")
    save(tmp_path, 30, keep=2)
    assert [found.images for found in valid_checkpoints(tmp_path)] == [30, 10]


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    save(tmp_path, 10)
    found = newest_checkpoint(tmp_path)
    assert found is not None
    with raises_naming(UserError, "network.safetensors", "another network", "use the config"):
        found.load_module("network", nn.Linear(3, 4))
    other = torch.optim.AdamW(nn.Linear(5, 4).parameters())
    with raises_naming(UserError, "optimizer.safetensors", "another network", "use the config"):
        found.load_optimizer("optimizer", other)


def test_no_checkpoint_is_no_error(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "none") is None


def test_a_save_replaces_a_damaged_checkpoint_of_its_name(tmp_path: Path) -> None:
    save(tmp_path, 10)
    save(tmp_path, 20)
    (tmp_path / "images-000000000020" / "network.safetensors").write_bytes(b"")
    save(tmp_path, 20)
    assert [found.images for found in valid_checkpoints(tmp_path)] == [20, 10]


@pytest.mark.parametrize("killed_at", range(25))
def test_a_kill_during_a_save_leaves_a_valid_checkpoint(tmp_path: Path, killed_at: int) -> None:
    save(tmp_path, 10)
    save(tmp_path, 20)
    RandomKill(tmp_path, seed=killed_at).wait()
    found = newest_checkpoint(tmp_path)
    assert found is not None
    assert found.images >= 20
    module, optimizer = trained(seed=1)
    found.load_module("network", module)
    found.load_optimizer("optimizer", optimizer)
    save(tmp_path, 10_000, keep=2)
    assert not list(tmp_path.glob(f"*{TEMPORARY_SUFFIX}"))


class RandomKill:
    """A process that saves one checkpoint after the other and is killed at a random moment."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.delay = 0.2 * float(np.random.default_rng(seed).random())
        self.process = os.fork()
        if self.process == 0:
            try:
                for images in range(30, 9_000, 10):
                    save(folder, images, keep=2)
            finally:
                os._exit(0)

    def wait(self) -> None:
        time.sleep(self.delay)
        os.kill(self.process, signal.SIGKILL)
        os.waitpid(self.process, 0)


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left"), SafetensorError("os error 28")]
)
def test_a_full_disk_during_a_save_leaves_the_earlier_checkpoint(
    tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 10)

    def write_half(tensors: dict[str, torch.Tensor], path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise error

    monkeypatch.setattr(checkpoint, "save_file", write_half)
    with raises_naming(JobError, str(tmp_path / "images-000000000020"), "free space"):
        save(tmp_path, 20)
    assert [path.name for path in tmp_path.iterdir()] == ["images-000000000010"]
    assert newest_checkpoint(tmp_path) is not None


def compiled(module: nn.Module) -> nn.Module:
    return torch.compile(module, backend="eager")  # type: ignore[return-value]


def test_keys_have_no_prefix_of_a_wrapper(tmp_path: Path) -> None:
    module, optimizer = trained()
    names = set(module.state_dict())
    assert set(gather_module(compiled(module))) == names
    saved = save_checkpoint(tmp_path, state_of(module, optimizer, 10), keep=1)
    saved.load_module("network", compiled(trained(seed=1)[0]))


def test_the_gradient_scaler_is_in_the_state(tmp_path: Path) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**7, growth_interval=3)
    scaler.scale(torch.ones(()))
    state = TrainingState(10, {}, 0, scaler.state_dict(), {"seed": 1})
    save_checkpoint(tmp_path, state, keep=1)
    found = newest_checkpoint(tmp_path)
    assert found is not None
    assert found.config == {"seed": 1}
    other = torch.amp.GradScaler("cpu")
    other.load_state_dict(dict(found.scaler))
    assert other.state_dict() == scaler.state_dict()


def test_a_save_hashes_what_it_wrote_and_nothing_that_was_hashed_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint of a large generator has tens of gigabytes, and several are kept."""
    hashed: list[Path] = []

    def counted(path: Path) -> str:
        hashed.append(path)
        return sha256_of(path)

    monkeypatch.setattr(known_digests, "sha256_of", counted)
    digest = KnownDigests()
    for number in range(1, 6):
        save_checkpoint(tmp_path, state_of(*trained(number), 10 * number), keep=3, digest=digest)
        assert len(hashed) == 2 * number  # network, optimizer
    assert [found.images for found in valid_checkpoints(tmp_path)] == [50, 40, 30]

    after_resume = KnownDigests()  # of a new process, which has hashed nothing
    hashed.clear()
    assert newest_checkpoint(tmp_path, after_resume) is not None
    assert [path.parent.name for path in hashed] == ["images-000000000050"] * 2
    save_checkpoint(tmp_path, state_of(*trained(6), 60), keep=3, digest=after_resume)
    save_checkpoint(tmp_path, state_of(*trained(7), 70), keep=3, digest=after_resume)
    names = [path.name for path in hashed if path.parent.name == "images-000000000050"]
    assert sorted(names) == ["network.safetensors", "optimizer.safetensors"]


def test_a_file_that_changed_since_it_was_hashed_is_hashed_again(tmp_path: Path) -> None:
    digest, file = KnownDigests(), tmp_path / "file"
    file.write_bytes(b"one")
    assert digest(file) == sha256_of(file)
    for content, seconds in ((b"longer", 0), (b"LONGER", 5)):
        file.write_bytes(content)
        later = file.stat().st_mtime_ns + seconds * 10**9
        os.utime(file, ns=(later, later))
        assert digest(file) == sha256_of(file)


def test_a_checkpoint_damaged_between_saves_is_not_counted(tmp_path: Path) -> None:
    digest = KnownDigests()
    for images in (10, 20):
        save_checkpoint(tmp_path, state_of(*trained(images), images), 2, digest)
    (tmp_path / "images-000000000020" / "network.safetensors").write_bytes(b"")
    save_checkpoint(tmp_path, state_of(*trained(30), 30), 2, digest)
    assert [found.images for found in valid_checkpoints(tmp_path)] == [30, 10]
