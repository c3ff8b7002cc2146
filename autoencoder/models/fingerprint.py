"""The fingerprint of an autoencoder: one hash of its configuration and its weights."""

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
    """The hash "sha256:..." of an autoencoder's class, arguments and stored weights.

    weights: in their stored dtype, so that the hash is independent of the file's format and folder,
    of library versions, and of the dtype and device in use.
    """
    digest = hashlib.sha256(canonical_config(network_class, config).encode())
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return f"sha256:{digest.hexdigest()}"


def canonical_config(network_class: type, config: Mapping[str, Any]) -> str:
    """Sorted JSON of the class and of its arguments that differ from their defaults.

    Independent of paths and versions that libraries add to a configuration, and of arguments that
    later versions add to the class.
    """
    parameters = inspect.signature(network_class).parameters
    chosen = {
        name: value
        for name, value in known_arguments(network_class, config).items()
        if json.dumps(value) != json.dumps(parameters[name].default)
    }
    return json.dumps({"class": network_class.__name__, **chosen}, sort_keys=True)


def known_arguments(network_class: type, config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the class in `config`, without the entries that libraries add."""
    names = inspect.signature(network_class).parameters
    return {name: value for name, value in config.items() if name in names}
