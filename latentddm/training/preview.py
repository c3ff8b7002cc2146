"""Previews of a training: grids of samples in a few evaluations."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from autoencoder.decode import decode_latents
from autoencoder.image_io import image_grid, save_image
from autoencoder.models import Autoencoder
from autoencoder.store import LatentStore
from latentddm.diffusion.flow_maps import sample_flow_map
from latentddm.diffusion.process import Prediction
from latentddm.diffusion.sampling import Denoiser, least_safety, time_grid
from latentddm.diffusion.schedules import Schedule
from latentddm.diffusion.solvers import solver_grid
from latentddm.engine.distributed import on_main
from latentddm.engine.errors import UserError
from latentddm.engine.seeding import torch_generator
from latentddm.inference.flow_maps import FlowMapNetwork
from latentddm.inference.latent_space import LatentSpace
from latentddm.inference.settings import SamplingConfig, solve_by

_log = logging.getLogger("latentddm")

IMAGES, COLUMNS = 32, 8


class Preview:
    """Draws and decodes grids from noise that is the same every time.

    The autoencoder is opened at once: without it a training, which has no other use for it, goes on
    without pictures, and the warning comes before its start, not at its end.
    """

    def __init__(self, store: LatentStore, seed: int, accelerator: Accelerator) -> None:
        self.store, self.seed, self.accelerator = store, seed, accelerator
        self._autoencoder = self._find_autoencoder() if accelerator.is_main_process else None

    def write(
        self,
        denoiser: Denoiser | FlowMapNetwork,
        path: Path,
        schedule: Schedule,
        prediction: Prediction,
        settings: SamplingConfig,
    ) -> None:
        """Write a grid drawn by `settings` to `path`, given an autoencoder; all processes draw.

        prediction: the network's; the times are those at which it has an x_0.
        """
        generator = torch_generator(self.seed, "preview")
        noise = torch.randn((IMAGES, *self.store.shape), generator=generator)
        x = noise.to(self.accelerator.device)
        safety = least_safety(prediction, schedule)
        if isinstance(denoiser, FlowMapNetwork):
            x0 = sample_flow_map(denoiser, x, time_grid(settings.steps, safety=safety))
        else:
            solver, steps, power = settings.solver, settings.steps, settings.power
            times = solver_grid(solver, steps, settings.grid, safety, power, schedule)
            x0 = solve_by(settings, denoiser, x, times, schedule, generator)
        on_main(self.accelerator, lambda: self._decode(x0, path))

    def _find_autoencoder(self) -> Autoencoder | None:
        try:
            return LatentSpace.of_store(self.store).load_autoencoder()
        except UserError as error:
            _log.warning("Training goes on without previews: %s", error)
            return None

    def _decode(self, x0: Tensor, path: Path) -> None:
        if self._autoencoder is None:
            return
        pixels = decode_latents(self.store.restore(x0.cpu()), self._autoencoder)
        save_image(path, image_grid(pixels.numpy(), columns=COLUMNS))
