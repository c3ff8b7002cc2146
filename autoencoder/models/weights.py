"""Weights files: reading without execution of code in them, and fitting to a network."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from latentddm.engine.atomic_io import read_json
from latentddm.engine.errors import UserError

Weights = dict[str, torch.Tensor]
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")


def read_weights(path: Path) -> Weights:
    """The tensors of a .safetensors, .pth, .pt, .bin or .ckpt file, in their dtype, on the CPU.

    UserError if the file is missing, damaged, or holds NaN or anything but tensors. Pickles are
    read by torch's restricted reader, which refuses code and never runs it.
    """
    if not path.is_file():
        raise UserError(f"The weights file {path} does not exist; check the path.")
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path} is not a weights file; give one of {', '.join(SUFFIXES)}.")
    weights = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickled(path)
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UserError(
                f"The tensor {name} in {path} holds NaN or infinite values; "
                "download or train the weights again."
            )
    return weights


def read_sharded(index: Path) -> Weights:
    """The tensors of all files listed in a "...safetensors.index.json"."""
    names = set(read_json(index).get("weight_map", {}).values())
    if not names or any(Path(str(name)).name != name for name in names):
        raise UserError(f"{index} lists no weights files in its own folder; restore it.")
    weights: Weights = {}
    for name in sorted(names):
        weights.update(read_weights(index.parent / name))
    return weights


def fit_weights(network: nn.Module, weights: Weights, source: str | Path) -> None:
    """Load `weights` into `network`, possibly on the meta device: all tensors or none.

    UserError that names the first missing, unknown or differently shaped tensor.
    """
    expected = {name: tensor.shape for name, tensor in network.state_dict().items()}
    kind = type(network).__name__
    missing = [name for name in expected if name not in weights]
    unknown = [name for name in weights if name not in expected]
    misshapen = [
        name for name in expected.keys() & weights.keys() if weights[name].shape != expected[name]
    ]
    if missing:
        raise UserError(_misfit(kind, source, "lack", missing))
    if unknown:
        raise UserError(_misfit(kind, source, "have the unknown", unknown))
    if misshapen:
        name = sorted(misshapen)[0]
        raise UserError(
            f"The weights in {source} do not fit the {kind} of its configuration: {name} is "
            f"{list(weights[name].shape)}, not {list(expected[name])}; give matching files."
        )
    network.load_state_dict(weights, assign=True)


def _misfit(kind: str, source: str | Path, problem: str, names: list[str]) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return (
        f"The weights in {source} are not those of the {kind} of its configuration: "
        f"they {problem} tensor {names[0]}{more}; give matching files."
    )


def _read_safetensors(path: Path) -> Weights:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is damaged or not a safetensors file ({error}); download it again."
        ) from error


def _read_pickled(path: Path) -> Weights:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about pickle protocols
            value: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is a pickle with code or objects other than tensors, which is never run; give "
            "a .safetensors file of these weights."
        ) from error
    except Exception as error:  # torch's readers raise errors of many kinds on torn files
        raise UserError(f"{path} is damaged or not a weights file; download it again.") from error
    if not isinstance(value, dict) or not all(
        isinstance(item, torch.Tensor) for item in value.values()
    ):
        raise UserError(
            f"{path} is not a plain table of tensors but a {type(value).__name__} with other "
            "objects; give a file with the weights alone."
        )
    return value
