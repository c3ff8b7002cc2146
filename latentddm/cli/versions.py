"""`latentddm --version`: the versions that a report of a fault needs, and the attention kernel."""

from __future__ import annotations

import argparse
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from latentddm import __version__

FORMATS = ("float32", "bfloat16")  # of attention: by default, and with bf16


class ShowVersions(argparse.Action):
    """Print two lines and exit; torch is imported then, not for help."""

    def __init__(self, option_strings: list[str], dest: str, help: str) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(describe_versions())
        parser.exit()


def describe_versions() -> str:
    """latentddm, torch and its CUDA, xformers; then the kernel of each number format and why."""
    import torch

    from latentddm.engine.devices import default_device
    from latentddm.networks.attention import default_kernel

    cuda = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
    device = default_device().type
    kernels: dict[str, list[str]] = {}  # one entry where all formats have the same
    for name in FORMATS:
        kernels.setdefault(str(default_kernel(device, getattr(torch, name))), []).append(name)
    attention = "; ".join(f"{kernel} in {' and '.join(at)}" for kernel, at in kernels.items())
    return (
        f"latentddm {__version__}, torch {torch.__version__} {cuda}, {_xformers()}\n"
        f"attention on {device}: {attention}"
    )


def _xformers() -> str:
    try:
        return f"xformers {version('xformers')}"
    except PackageNotFoundError:
        return "no xformers"
