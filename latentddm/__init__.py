"""latentddm: few-step latent image generators from a folder of pictures, with no teacher.

The public face, by name. Each name is imported on first use (PEP 562), so that
`import latentddm` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

from latentddm.engine.cuda_runtime import preload_cuda_12

__version__ = "0.1.0"

preload_cuda_12()  # here, since every way to diffusers, which imports xformers, leads through here

_PUBLIC = {
    "FlowSchedule": "latentddm.diffusion.schedules",
    "CosineSchedule": "latentddm.diffusion.schedules",
    "corrupt": "latentddm.diffusion.process",
    "bridge_step": "latentddm.diffusion.process",
    "sample": "latentddm.diffusion.sampling",
    "time_grid": "latentddm.diffusion.sampling",
    "energy_score": "latentddm.scores",
    "kernel_score": "latentddm.scores",
    "Generator": "latentddm.inference.generator",
    "SamplingConfig": "latentddm.inference.generator",
    "LatentDDMPipeline": "latentddm.hub.pipeline",
    "DistributionalScheduler": "latentddm.hub.scheduler",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    """Import a public name from the module that defines it."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'latentddm' has no attribute '{name}'")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
