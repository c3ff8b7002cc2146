"""Pixels to latents and back: image sources, autoencoders, the latent store, decoding."""

from __future__ import annotations

import importlib
from typing import Any

from latentddm.engine.cuda_runtime import preload_cuda_12

_PUBLIC = {
    "LatentStore": "autoencoder.store",
    "encode_store": "autoencoder.store",
    "load_autoencoder": "autoencoder.models",
}
__all__ = [*_PUBLIC]

preload_cuda_12()  # before any module here imports diffusers


def __getattr__(name: str) -> Any:
    """Import a public name from the package that defines it."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'autoencoder' has no attribute '{name}'")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
