"""What the page shows, as pictures: samples, a trajectory, draws of one posterior. No page here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from autoencoder.decode import decode_latents
from autoencoder.image_io import image_grid
from autoencoder.models import Autoencoder
from latentddm.diffusion.process import corrupt
from latentddm.diffusion.sampling import SamplingStep, sample
from latentddm.diffusion.schedules import FlowSchedule
from latentddm.engine.devices import default_device
from latentddm.engine.errors import UserError
from latentddm.engine.seeding import torch_generator
from latentddm.inference.generator import Generator, SamplingConfig

SCHEDULE = FlowSchedule()
CLEAN_STEPS = 8  # evaluations for the picture that the posterior page corrupts


class Studio:
    """A run, ready to draw; every method returns one picture, uint8 [H, W, 3]."""

    def __init__(self, generator: Generator, autoencoder: Autoencoder) -> None:
        self.generator, self.autoencoder = generator, autoencoder

    @classmethod
    def open(cls, run: Path | str, ema: str | None = None) -> Studio:
        """The studio of a run, on the best device here; UserError if it cannot be used."""
        device = default_device()
        generator = Generator.load(run, device, ema=ema)
        return cls(generator, generator.space.load_autoencoder(device))

    @property
    def classes(self) -> int:
        """How many labels can be asked for; 0 if none."""
        return int(self.generator.network.config["classes"])

    def samples(self, config: SamplingConfig, count: int = 16) -> np.ndarray:
        """A square of samples; the same seed begins with the same noise whatever else changes."""
        return self._picture(self.generator.draw(count, config), columns=round(count**0.5))

    def trajectory(self, config: SamplingConfig) -> np.ndarray:
        """One sample step by step. Upper row: x_t, from noise on; lower row: the draw of x_0.

        The last draw is the first of `samples`. UserError for another solver than ddim.
        """
        if config.solver != "ddim":
            raise UserError("A trajectory is shown for ddim, which steps from draw to draw.")
        steps: list[SamplingStep] = []
        generator = torch_generator(config.seed, "sample", 0)
        try:
            sample(
                self.generator.denoiser(config),
                self._noise(generator),
                self.generator.times(config),
                churn=config.churn,
                generator=[generator],
                callback=steps.append,
            )
        except ValueError as error:
            raise UserError(str(error)) from None
        rows = [step.x_t for step in steps] + [step.x0 for step in steps]
        return self._picture(self._restored(rows), columns=len(steps))

    def posterior(self, t: float, draws: int = 14, seed: int = 0) -> np.ndarray:
        """A sample, the same at time t, and what it may have been: independent draws of x_0.

        One evaluation each, of p(x_0 | x_t) itself; a denoiser of the mean has a single answer.
        """
        if not 0 < t <= 1:
            raise UserError(f"t must lie in (0, 1], not {t}.")
        t = min(t, 1 - self.generator.least_safety)
        clean = self._clean(seed)
        generator = torch_generator(seed, "posterior")
        x_t = corrupt(clean, t, self._noise(generator), SCHEDULE)
        xi = torch.cat([self._noise(generator) for _ in range(draws)])[None]
        with torch.no_grad():
            x0 = self.generator.network(x_t, torch.full((1,), t, device=x_t.device), xi)[0]
        return self._picture(self._restored([clean, x_t, x0]), columns=-(-(draws + 2) // 2))

    def _clean(self, seed: int) -> Tensor:
        """The first sample under `seed`, in model space [1, C, H, W]."""
        generator = torch_generator(seed, "sample", 0)
        times = self.generator.times(SamplingConfig(steps=CLEAN_STEPS))
        noise = self._noise(generator)
        return sample(self.generator.network, noise, times, generator=[generator])

    def _noise(self, generator: torch.Generator) -> Tensor:
        noise = torch.randn((1, *self.generator.space.shape), generator=generator)
        return noise.to(self.generator.network.device)

    def _restored(self, latents: Sequence[Tensor]) -> Tensor:
        return self.generator.space.restore(torch.cat(list(latents)).cpu())

    def _picture(self, raw: Tensor, columns: int) -> np.ndarray:
        return image_grid(decode_latents(raw, self.autoencoder).numpy(), columns)
