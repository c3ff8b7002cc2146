"""The identity of an autoencoder: one hash over what its configuration and its weights say."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping
from typing import Any

import torch


def fingerprint_of(
    network_class: type, config: Mapping[str, Any], weights: Mapping[str, torch.Tensor]
) -> str:
    """ "sha256:..." of an autoencoder as it is stored.

    Equal for equal weights whatever the file's format, folder or library version, and whatever
    dtype and device they are used in later: `weights` are to be hashed as they are stored.
    """
    digest = hashlib.sha256(canonical_config(network_class, config).encode())
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return f"sha256:{digest.hexdigest()}"


def canonical_config(network_class: type, config: Mapping[str, Any]) -> str:
    """Sorted JSON of the class and of those of its arguments that differ from their defaults.

    So neither paths and versions that a library notes in a configuration, nor arguments that a
    later version adds, change a fingerprint.
    """
    parameters = inspect.signature(network_class).parameters
    chosen = {
        name: value
        for name, value in known_arguments(network_class, config).items()
        if json.dumps(value) != json.dumps(parameters[name].default)
    }
    return json.dumps({"class": network_class.__name__, **chosen}, sort_keys=True)


def known_arguments(network_class: type, config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the class in `config`, without what libraries note beside them."""
    names = inspect.signature(network_class).parameters
    return {name: value for name, value in config.items() if name in names}
