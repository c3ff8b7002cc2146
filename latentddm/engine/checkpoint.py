"""Checkpoints: folders of safetensors and a state.json, written whole or not at all.

A checkpoint is valid when its state.json reads and every file it lists has the size and hash it
says. No pickle is written or read.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from latentddm.engine.errors import RequestError, WorkError
from latentddm.engine.files import TEMPORARY_SUFFIX, atomic_path, read_json, sha256_of

FORMAT_VERSION = 1
_log = logging.getLogger("latentddm")


@dataclass(frozen=True)
class Checkpoint:
    """A valid checkpoint on disk."""

    path: Path
    images: int

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors saved under `name`, on the CPU."""
        try:
            return load_file(self.path / f"{name}.safetensors")
        except (FileNotFoundError, SafetensorError) as error:
            raise WorkError(f"{self.path}: {name}.safetensors cannot be read ({error}).") from error

    def load_module(self, name: str, module: nn.Module) -> None:
        """Load the weights saved under `name` into `module`; RequestError if they do not fit."""
        try:
            module.load_state_dict(self.tensors(name))
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            raise RequestError(
                f"{self.path}/{name}.safetensors belongs to another network ({reason}); "
                "use the config it was trained with."
            ) from error

    def load_optimizer(self, name: str, optimizer: Optimizer) -> None:
        """Load the optimizer state saved under `name`."""
        state: dict[int, dict[str, Tensor]] = {}
        for key, tensor in self.tensors(name).items():
            index, entry = key.split(".", 1)
            state.setdefault(int(index), {})[entry] = tensor
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": state, "param_groups": groups})


def save_checkpoint(
    folder: Path,
    images: int,
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, Optimizer],
    keep: int,
) -> Checkpoint:
    """Write checkpoints/images-…, then drop the oldest valid ones beyond `keep`."""
    path = folder / f"images-{images:012d}"
    with atomic_path(path) as temporary:
        temporary.mkdir(parents=True)
        for name, module in modules.items():
            _save_tensors(temporary, name, module.state_dict())
        for name, optimizer in optimizers.items():
            _save_tensors(temporary, name, _optimizer_tensors(optimizer))
        files = {file.name: _describe(file) for file in sorted(temporary.iterdir())}
        state = {"version": FORMAT_VERSION, "images": images, "files": files}
        (temporary / "state.json").write_text(json.dumps(state, indent=2) + "\n")
    for old in list(valid_checkpoints(folder))[keep:]:
        shutil.rmtree(old.path)
    return Checkpoint(path, images)


def valid_checkpoints(folder: Path) -> Iterator[Checkpoint]:
    """The valid checkpoints in `folder`, newest first; torn ones are named in the log."""
    if not folder.is_dir():
        return
    for path in sorted(folder.glob("images-*"), reverse=True):
        if path.name.endswith(TEMPORARY_SUFFIX):
            continue  # a save that was killed; the next save of that name replaces it
        problem = _problem(path)
        if problem:
            _log.warning("checkpoint %s is not valid and is left out: %s", path, problem)
        else:
            yield Checkpoint(path, read_json(path / "state.json")["images"])


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest valid checkpoint, or None."""
    return next(valid_checkpoints(folder), None)


def _problem(path: Path) -> str:
    """Why the checkpoint at `path` is not valid; empty if it is."""
    try:
        state = read_json(path / "state.json")
    except RequestError as error:
        return str(error)
    if state.get("version") != FORMAT_VERSION:
        return f"its format is version {state.get('version')}, this program writes {FORMAT_VERSION}"
    for name, described in state["files"].items():
        file = path / name
        if not file.is_file() or _describe(file) != described:
            return f"{name} is missing, cut or changed"
    return ""


def _describe(file: Path) -> dict[str, Any]:
    return {"bytes": file.stat().st_size, "sha256": sha256_of(file)}


def _save_tensors(folder: Path, name: str, tensors: Mapping[str, Tensor]) -> None:
    contiguous = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    path = folder / f"{name}.safetensors"
    try:
        save_file(contiguous, path)
    except SafetensorError as error:
        raise WorkError(f"{path} cannot be written ({error}); free space and run again.") from error


def _optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """Optimizer state as flat tensors: '<parameter number>.<entry>'."""
    return {
        f"{index}.{entry}": torch.as_tensor(value)
        for index, entries in optimizer.state_dict()["state"].items()
        for entry, value in entries.items()
    }
