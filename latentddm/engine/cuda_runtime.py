"""The CUDA 12 runtime library, loaded for xformers.

The registry's xformers is built for CUDA 12 and its extension asks for libcudart.so.12, which a
torch for CUDA 13 does not bring. With the library in the process the extension loads (it uses
torch's stable ABI), and diffusers' import of xformers prints no warning, with a GPU or without.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress
from functools import cache
from importlib.util import find_spec

LIBRARY = "libcudart.so.12"


@cache
def preload_cuda_12() -> None:
    """Load the library of the package nvidia-cuda-runtime-cu12, where there is one.

    It must come before xformers, and so before diffusers, is imported. A library that does not load
    is no error: xformers then says so itself, and attention runs through torch.
    """
    with suppress(ImportError):  # no package `nvidia` at all: not Linux, or a torch of another kind
        spec = find_spec("nvidia.cuda_runtime")
        for folder in (spec.submodule_search_locations or []) if spec else []:
            with suppress(OSError):
                ctypes.CDLL(f"{folder}/lib/{LIBRARY}", mode=ctypes.RTLD_GLOBAL)
