"""Checkpoints: folders of safetensors files and a state.json, written atomically.

A checkpoint is valid when its state.json is readable and every file listed there has the recorded
size and hash. No pickle is written or read. Keys are those of the raw module, without prefixes of
DDP or torch.compile, and sharded tensors are written whole: a run resumes on any number of
processes.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from latentddm.engine.atomic_io import (
    TEMPORARY_SUFFIX,
    atomic_path,
    read_json,
    remove_folder,
    remove_leftovers,
    sha256_of,
)
from latentddm.engine.distributed import full_tensor, shard_like
from latentddm.engine.errors import JobError, UserError
from latentddm.engine.seeding import RANDOM_FORMAT

FORMAT_VERSION = 2  # since 2, state.json has the phase
Digest = Callable[[Path], str]  # SHA-256 of a file
_STATE = {"images": int, "phase": int, "scaler": dict, "config": dict, "files": dict}
_log = logging.getLogger("latentddm")


@dataclass(frozen=True)
class TrainingState:
    """The whole state of a training, gathered from all processes.

    images: images seen, the position of every random draw; tensors: by file, then by name;
    phase: index of the phase in training; scaler: state of the gradient scaler of fp16; config: of
    the run, by which a checkpoint of another run is refused.
    """

    images: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    phase: int = 0
    scaler: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """A valid checkpoint on disk; random_format: of the numbers that its training drew."""

    path: Path
    images: int
    phase: int = 0
    scaler: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    random_format: int = RANDOM_FORMAT

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors saved under `name`, on the CPU."""
        return read_tensors(self.path / f"{name}.safetensors")

    def load_module(self, name: str, module: nn.Module) -> None:
        """Load the weights saved under `name` into `module`; UserError if they do not fit."""
        load_weights(self.path / f"{name}.safetensors", module)

    def load_optimizer(self, name: str, optimizer: Optimizer) -> None:
        """Load the optimizer state saved under `name`; UserError if it does not fit."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        state: dict[int, dict[str, Tensor]] = {}
        for key, tensor in self.tensors(name).items():
            index, entry = key.split(".", 1)
            parameter = parameters[int(index)] if int(index) < len(parameters) else None
            if parameter is None or (tensor.ndim > 0 and tensor.shape != parameter.shape):
                raise UserError(
                    f"{self.path}/{name}.safetensors belongs to another network ({key} is "
                    f"{list(tensor.shape)}); use the config of its training."
                )
            whole = tensor.ndim > 0
            state.setdefault(int(index), {})[entry] = (
                shard_like(tensor, parameter) if whole else tensor
            )
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": state, "param_groups": groups})


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU; JobError if it cannot be read."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise JobError(f"{path} cannot be read ({error}); restore it.") from error


def load_weights(path: Path, module: nn.Module) -> None:
    """Load a safetensors file into `module`, sharded or not; UserError if it does not fit."""
    module = _raw(module)
    own = module.state_dict()
    saved = {
        key: shard_like(tensor, own[key]) if key in own else tensor
        for key, tensor in read_tensors(path).items()
    }
    try:
        module.load_state_dict(saved)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(
            f"{path} belongs to another network ({reason}); use the config of its training."
        ) from error


def gather_module(module: nn.Module) -> dict[str, Tensor]:
    """The whole state dict of the raw module, on the CPU; collective: call it on every process."""
    return _on_cpu(_raw(module).state_dict())


def gather_optimizer(optimizer: Optimizer) -> dict[str, Tensor]:
    """The optimizer's state on the CPU, keys '<parameter index>.<entry>'; collective."""
    return _on_cpu(
        {
            f"{index}.{entry}": torch.as_tensor(value)
            for index, entries in optimizer.state_dict()["state"].items()
            for entry, value in entries.items()
        }
    )


def save_checkpoint(
    folder: Path, state: TrainingState, keep: int, digest: Digest = sha256_of
) -> Checkpoint:
    """Write checkpoints/images-…, then remove the oldest valid ones beyond `keep`.

    On one process only. digest: `KnownDigests` if there are further saves. JobError if it cannot be
    written; earlier checkpoints are then unchanged.
    """
    path = checkpoint_path(folder, state.images)
    remove_leftovers(folder)
    with atomic_path(path) as temporary:
        temporary.mkdir()
        for name, tensors in state.tensors.items():
            save_file(dict(tensors), temporary / f"{name}.safetensors")
        described = {
            "version": FORMAT_VERSION,
            "random_format": RANDOM_FORMAT,
            "images": state.images,
            "phase": state.phase,
            "scaler": dict(state.scaler),
            "config": dict(state.config),
            "files": {file.name: _describe(file, digest) for file in sorted(temporary.iterdir())},
        }
        (temporary / "state.json").write_text(json.dumps(described, indent=2) + "\n")
        if path.exists():  # a damaged one: from a valid one the run would have resumed
            remove_folder(path)
    for old in list(valid_checkpoints(folder, digest))[keep:]:
        remove_folder(old.path)
    return Checkpoint(path, state.images, state.phase, state.scaler, state.config)


def checkpoint_path(folder: Path, images: int) -> Path:
    """The path of the checkpoint at `images` seen."""
    return folder / f"images-{images:012d}"


def valid_checkpoints(folder: Path, digest: Digest = sha256_of) -> Iterator[Checkpoint]:
    """The valid checkpoints in `folder`, newest first; damaged ones are named in the log."""
    for path in _finished(folder):
        problem = _problem(path, digest)
        if problem:
            _log.warning("the checkpoint %s is damaged and not used: %s", path, problem)
        else:
            state = read_json(path / "state.json")
            yield Checkpoint(
                path,
                state["images"],
                state["phase"],
                state["scaler"],
                state["config"],
                state.get("random_format", 1),
            )


def newest_checkpoint(folder: Path, digest: Digest = sha256_of) -> Checkpoint | None:
    """The newest valid checkpoint; None if there is none at all.

    UserError if there are some and none is valid: only the user may decide to start from scratch.
    """
    newest = next(valid_checkpoints(folder, digest), None)
    if newest is None and (damaged := _finished(folder)):
        raise UserError(
            f"None of the {len(damaged)} checkpoints in {folder} is valid (the newest: "
            f"{_problem(damaged[0], digest)}); restore one, or delete the folder to start from "
            "scratch."
        )
    return newest


def _finished(folder: Path) -> list[Path]:
    """The folders named as checkpoints, newest first; a killed save has a temporary name."""
    found = folder.glob("images-*") if folder.is_dir() else ()
    return sorted((p for p in found if not p.name.endswith(TEMPORARY_SUFFIX)), reverse=True)


def _problem(path: Path, digest: Digest) -> str:
    """The damage of the checkpoint at `path`; empty if it is valid."""
    try:
        state = read_json(path / "state.json")
    except (UserError, JobError) as error:
        return str(error).rstrip(".")
    if state.get("version") != FORMAT_VERSION:
        return f"its format is version {state.get('version')}, this program writes {FORMAT_VERSION}"
    for key, kind in _STATE.items():
        if type(state.get(key)) is not kind:
            return f"{path / 'state.json'} has no {key}, or a wrong one"
    for name, described in state["files"].items():
        file = path / name
        if not file.is_file() or _describe(file, digest) != described:
            return f"{name} is missing, truncated or changed"
    return ""


def _describe(file: Path, digest: Digest) -> dict[str, Any]:
    return {"bytes": file.stat().st_size, "sha256": digest(file)}


def _raw(module: nn.Module) -> nn.Module:
    """The module without the wrappers of DDP and torch.compile."""
    return extract_model_from_parallel(module, keep_torch_compile=False)


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: full_tensor(tensor.detach()).cpu().contiguous() for key, tensor in tensors.items()}
