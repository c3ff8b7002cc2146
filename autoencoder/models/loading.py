"""Autoencoders by reference: a folder of diffusers, a run, the hub, the TAESD family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from autoencoder.models.adapters import ADAPTERS, wrap_network
from autoencoder.models.base import Autoencoder
from autoencoder.models.fingerprint import fingerprint_of, known_arguments
from autoencoder.models.hub import download, is_hub_reference
from autoencoder.models.pixels import REFERENCE as PIXELS
from autoencoder.models.pixels import PixelAutoencoder
from autoencoder.models.tiny import find_weights, load_tiny
from autoencoder.models.weights import Weights, fit_weights, read_sharded, read_weights
from autoencoder.remote import RemoteFolder, cached_file, is_remote
from autoencoder.sources.naming import public_name
from latentddm.engine.atomic_io import read_json
from latentddm.engine.errors import UserError

SUBFOLDERS = ("vae", "vqvae", "autoencoder")
"""The folders of the autoencoder in pipelines of diffusers and runs of `train-autoencoder`."""

WEIGHTS_NAMES = (
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
    "diffusion_pytorch_model.fp16.safetensors",
    "diffusion_pytorch_model.bin",
)
OLD_ATTENTION_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def load_autoencoder(
    reference: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Autoencoder:
    """The autoencoder of a reference, frozen, on `device` with weights in `dtype`.

    reference: a folder of diffusers (AutoencoderKL, VQModel, AutoencoderTiny, AutoencoderDC, or a
    pipeline with one of these) or its URL, a run of `latentddm train-autoencoder`, a hub id
    (owner/name or owner/name:subfolder), weights of the TAESD family (their folder, one of the two
    files, or folder/prefix of both), or `pixels`, the identity, which is float32 for any `dtype`
    (a folder of that name is ./pixels). UserError for a wrong reference or unfitting weights.
    """
    name = str(reference)
    if name == PIXELS:
        return PixelAutoencoder().to(device)
    path = _fetch(name) if is_remote(name) else Path(name).expanduser()
    if not path.exists() and not find_weights(path) and is_hub_reference(name):
        path = download(name)
    network, config, weights = _load_network(path)
    fingerprint = fingerprint_of(type(network), config, weights)
    autoencoder = wrap_network(network, reference=public_name(name), fingerprint=fingerprint)
    autoencoder.to(memory_format=torch.channels_last)
    return autoencoder.to(device=device, dtype=dtype)


def _fetch(url: str) -> Path:
    """A local copy of the folder of diffusers at a URL."""
    folder = RemoteFolder(url)
    config, _ = (
        cached_file(folder, name, "autoencoders") for name in ("config.json", WEIGHTS_NAMES[0])
    )
    return config.parent


def _load_network(path: Path) -> tuple[torch.nn.Module, dict[str, Any], Weights]:
    for folder in (path, *(path / subfolder for subfolder in SUBFOLDERS)):
        if (folder / "config.json").is_file():
            return _load_folder(folder)
    if files := find_weights(path):
        return load_tiny(files)
    if not path.exists():
        below = "" if path.is_absolute() else f" in {Path.cwd()}"
        raise UserError(f"The autoencoder {path} does not exist{below}; check the path.")
    raise UserError(
        f"{path} holds no autoencoder: neither config.json (here or in {', '.join(SUBFOLDERS)}) "
        "nor *encoder and *decoder weights of the TAESD family; check the path."
    )


def _load_folder(folder: Path) -> tuple[torch.nn.Module, dict[str, Any], Weights]:
    """The network, configuration and weights of a folder of save_pretrained, in its dtype."""
    path = folder / "config.json"
    config = read_json(path)
    network_classes: dict[str, Any] = {network.__name__: network for network in ADAPTERS}
    network_class = network_classes.get(str(config.get("_class_name")))
    if network_class is None:
        raise UserError(
            f"{path} is the configuration of {config.get('_class_name', 'an unnamed class')}; "
            f"give an autoencoder of one of {', '.join(network_classes)}."
        )
    weights = _current_names(_folder_weights(folder))
    _refuse_giants(path, config, len(weights))
    try:
        with torch.device("meta"):
            network = network_class(**known_arguments(network_class, config))
    except Exception as error:  # constructors raise errors of many kinds on wrong values
        raise UserError(
            f"{path} is not a valid configuration of {config['_class_name']} ({error}); restore it."
        ) from error
    fit_weights(network, weights, folder)
    return network, config, weights


def _refuse_giants(path: Path, config: dict[str, Any], tensors: int) -> None:
    """UserError for more layers than the weights have tensors: building them would not end."""
    for name, value in config.items():
        counts = value if isinstance(value, list) else [value]
        if "layers" in name or "blocks" in name:
            giant = next((n for n in counts if isinstance(n, int | float) and n > tensors), None)
            if giant is not None:
                raise UserError(
                    f"{path} has {name} {giant}, but its weights are {tensors} tensors; restore it."
                )


def _folder_weights(folder: Path) -> Weights:
    for name in WEIGHTS_NAMES:
        if (folder / name).is_file():
            reader = read_sharded if name.endswith(".json") else read_weights
            return reader(folder / name)
    raise UserError(
        f"{folder} has a config.json but no weights ({', '.join(WEIGHTS_NAMES)}); copy them there."
    )


def _current_names(weights: Weights) -> Weights:
    """Weights with the current names of attention layers, in the place of those of early VAEs."""

    def renamed(name: str) -> str:
        module, _, leaf = name.rpartition(".")
        parent, _, last = module.rpartition(".")
        return (
            f"{parent}.{OLD_ATTENTION_NAMES[last]}.{leaf}" if last in OLD_ATTENTION_NAMES else name
        )

    return {renamed(name): tensor for name, tensor in weights.items()}
