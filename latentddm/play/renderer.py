"""Renders the views of a run: draws beside the mean, a trajectory, a posterior. Without gradio."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autoencoder.decode import decode_latents
from autoencoder.models import Autoencoder
from latentddm.diffusion.averaging import DRAWS, AveragedDenoiser
from latentddm.diffusion.process import corrupt
from latentddm.diffusion.sampling import Denoiser, SamplingStep, extend_scales, sample
from latentddm.diffusion.solvers import solve
from latentddm.engine.config import to_plain
from latentddm.engine.devices import default_device
from latentddm.engine.errors import UserError
from latentddm.engine.seeding import torch_generator
from latentddm.inference.generator import Generator, SamplingConfig
from latentddm.inference.xi_scale import format_scales
from latentddm.play.sheet import Row, Sheet

CLEAN_STEPS = 8  # evaluations for the picture that the posterior view corrupts

ONE_ANSWER = "the output of this network does not depend on ξ: it is a mean denoiser"


class Renderer:
    """A trained run, by name, and its autoencoder; each method renders one view as a `Sheet`."""

    def __init__(
        self,
        name: str,
        generator: Generator,
        autoencoder: Autoencoder,
    ) -> None:
        self.name, self.generator, self.autoencoder = name, generator, autoencoder

    @classmethod
    def open(cls, run: Path | str, ema: str | None = None) -> Renderer:
        """The renderer of a run, on the best device here; UserError if the run cannot be used."""
        device = default_device()
        generator = Generator.load(run, device, ema=ema)
        if generator.flow_map:
            raise UserError(
                f"{run} is a flow map, without the draws and means that this page is about; use "
                "`latentddm sample`."
            )
        autoencoder = generator.space.load_autoencoder(device)
        return cls(Path(run).resolve().name, generator, autoencoder)

    @property
    def classes(self) -> int:
        """The number of class labels of the run; 0 if it has none."""
        return int(self.generator.network.config["classes"])

    @property
    def reads_xi(self) -> bool:
        """Whether the network draws; not so for plain diffusion, a mean denoiser."""
        return self.generator.reads_xi

    def draws(self, config: SamplingConfig, count: int = 4) -> Sheet:
        """Samples 0 ... count - 1 of `latentddm sample`, above those of the network's mean.

        Both rows have the same initial noise, times and churn noise. Of plain diffusion, whose
        network is its own mean, there is one row.
        """
        drawn = self._pixels(self.generator.draw(count, config))
        captions = tuple(f"picture {index}" for index in range(count))
        scales = {"ξ": config.xi_scale, "the initial noise": config.noise_scale}
        scaled = "".join(
            f", {name} scaled by {format_scales(scale, ', ')}"
            for name, scale in scales.items()
            if scale != 1
        )
        rows: tuple[Row, ...]
        if self.reads_xi:
            mean = torch.cat([self._sample_mean(config, index) for index in range(count)])
            rows = (
                Row(
                    "ddm",
                    "DDM",
                    f"each evaluation returns one draw from p(x₀ | xₜ){scaled}",
                    drawn,
                    captions,
                ),
                Row(
                    "mean",
                    "Mean of the same network",
                    f"each evaluation returns the average of {DRAWS} draws",
                    self._pixels(self._restored([mean])),
                    captions,
                ),
            )
        else:
            rows = (Row("plain", "Plain diffusion", f"{ONE_ANSWER}{scaled}", drawn, captions),)
        name = f"draws-seed{config.seed}-nfe{config.steps}"
        return self._sheet(name, rows, to_plain(config))

    def trajectory(self, config: SamplingConfig) -> Sheet:
        """Picture 0 step by step: x_t, from noise on, above the draw of x_0 at that time.

        The last draw is picture 0 of `draws`. UserError for another solver than ddim.
        """
        if config.solver != "ddim":
            raise UserError(
                f"The trajectory is that of the solver ddim; choose it in place of {config.solver}."
            )
        steps: list[SamplingStep] = []
        generator = torch_generator(config.seed, "sample", 0)
        try:
            sample(
                self.generator.denoiser(config),
                config.noise_scale * self._noise(generator),
                self.generator.times(config),
                churn=config.churn,
                schedule=self.generator.schedule,
                generator=[generator],
                callback=steps.append,
                xi_scale=extend_scales(config.xi_scale, config.steps),
            )
        except ValueError as error:
            raise UserError(str(error)) from None
        captions = tuple(f"t = {float(step.t):.3f}" for step in steps)
        noisy = self._pixels(self._restored([step.x_t for step in steps]))
        drawn = self._pixels(self._restored([step.x0 for step in steps]))
        rows = (
            Row("x_t", "xₜ", "the state before each evaluation, decoded", noisy, captions),
            Row(
                "x_0", "x₀", "the output of each evaluation; the last is picture 0", drawn, captions
            ),
        )
        name = f"trajectory-seed{config.seed}-nfe{config.steps}"
        return self._sheet(name, rows, to_plain(config))

    def posterior(self, t: float, count: int = 4, seed: int = 0, xi_scale: float = 1.0) -> Sheet:
        """A sample and its x_t, above independent draws of x_0 from p(x_0 | x_t).

        One evaluation each; beside x_t stands the mean, the single answer of plain diffusion.
        """
        if not 0 < t <= 1:
            raise UserError(f"t must lie in (0, 1], not {t}.")
        t = min(t, 1 - self.generator.least_safety)
        clean = self._clean(seed)
        generator = torch_generator(seed, "posterior")
        x_t = corrupt(clean, t, self._noise(generator), self.generator.schedule)
        xi = torch.cat([self._noise(generator) for _ in range(count)])[None]
        time = torch.full((1,), t, device=x_t.device)
        network = self.generator.network
        with torch.no_grad():
            if self.reads_xi:
                x0 = network(x_t, time, xi_scale * xi)[0]
                mean = self._averaged(network, seed)(x_t, time, xi[:, 0])
            else:
                mean = network(x_t, time, None)
                x0 = mean.expand(count, -1, -1, -1)
        known = self._pixels(self._restored([clean, x_t, mean]))
        drawn = self._pixels(self._restored([x0]))
        of_time = f"t = {t:.2f}"
        rows = (
            Row(
                "given",
                "A sample, its xₜ, and the mean",
                f"a sample in {CLEAN_STEPS} evaluations; the mean of p(x₀ | xₜ)",
                known,
                ("x₀, a sample", f"xₜ at {of_time}", f"mean of {DRAWS} draws"),
            ),
            Row(
                "draw",
                "Draws from p(x₀ | xₜ)",
                "independent, one evaluation each" if self.reads_xi else ONE_ANSWER,
                drawn,
                tuple(f"draw {index}" for index in range(count)),
            ),
        )
        return self._sheet(
            f"posterior-seed{seed}-t{t:.2f}", rows, {"seed": seed, "t": t, "xi_scale": xi_scale}
        )

    def _sample_mean(self, config: SamplingConfig, index: int) -> Tensor:
        """Picture `index` of the mean denoiser, in model space [1, C, H, W].

        The scale of xi is 1 whatever `config` holds: the average is of p(x_0 | x_t) itself. One
        picture at a time: each is a batch of `DRAWS` for the network.
        """
        generator = torch_generator(config.seed, "sample", index)
        return solve(
            self._averaged(self.generator.denoiser(config), config.seed, index),
            config.noise_scale * self._noise(generator),
            self.generator.times(config),
            config.solver,
            churn=config.churn,
            generator=[generator],
            schedule=self.generator.schedule,
        )

    def _averaged(self, denoiser: Denoiser, seed: int, index: int = 0) -> AveragedDenoiser:
        return AveragedDenoiser(denoiser, generator=torch_generator(seed, "mean", index))

    def _clean(self, seed: int) -> Tensor:
        """The first sample under `seed`, in model space [1, C, H, W]."""
        return self.generator.draw_batch([0], self.generator.settings(CLEAN_STEPS, seed=seed))

    def _noise(self, generator: torch.Generator) -> Tensor:
        noise = torch.randn((1, *self.generator.space.shape), generator=generator)
        return noise.to(self.generator.network.device)

    def _restored(self, latents: Sequence[Tensor]) -> Tensor:
        return self.generator.space.restore(torch.cat(list(latents)).cpu())

    def _pixels(self, raw: Tensor) -> np.ndarray:
        return decode_latents(raw, self.autoencoder).numpy()

    def _sheet(self, name: str, rows: tuple[Row, ...], settings: dict[str, Any]) -> Sheet:
        about = {"run": self.name, "images_seen": self.generator.images, "mean_draws": DRAWS}
        return Sheet(f"{self.name}-{name}", rows, about | settings)
