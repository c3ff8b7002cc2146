"""Sets of tools/ruler.py with the faults of few steps: a Gaussian model's denoised latents.

Latents z of a store are noised, x_t = alpha_t z + sigma_t eps, and replaced by the mean of
p(z | x_t), or by a draw from it, of the Gaussian with the store's mean and covariance. Means are
pale and smooth, as a few steps of plain diffusion; draws have the right variance and do not hold
together, as those of a weak distributional model.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from autoencoder.store import LatentStore
from latentddm.diffusion.process import corrupt
from latentddm.diffusion.schedules import FlowSchedule
from latentddm.engine.errors import UserError
from latentddm.engine.seeding import torch_generator

SETS = {
    "gaussian-mean-0.5": (0.5, False),
    "gaussian-mean-0.75": (0.75, False),
    "gaussian-draws-0.5": (0.5, True),
    "gaussian-draws-0.75": (0.75, True),
}
"""(t, whether draws) by name."""


class GaussianSets:
    """Raw latents of the sets, made from the first `count` latents of a store's shuffled order."""

    def __init__(self, store: str, count: int, seed: int) -> None:
        self._store, self._count, self._seed = LatentStore(store), count, seed
        self.fingerprint = self._store.fingerprint
        dimension = self._store.shape[0] * self._store.shape[1] * self._store.shape[2]
        if len(self._store) < count + 2 * dimension:
            raise UserError(
                f"{store} holds {len(self._store)} latents; a Gaussian of {dimension} dimensions "
                f"needs {count + 2 * dimension}."
            )

    def latents(self, name: str) -> Tensor:
        """Raw latents [count, C, H, W] of a set."""
        time, drawn = SETS[name]
        mean, values, vectors = self._moments
        random = torch_generator(self._seed, "ruler", name)
        z = self._model_space[: self._count]
        noise = torch.randn(z.shape, generator=random)
        schedule, t = FlowSchedule(), torch.tensor(time)
        x_t = corrupt(z, t, noise, schedule)
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        # In principal axes: E[z | x_t] = m + g (x_t - alpha m), g = alpha l / (alpha^2 l + sigma^2)
        precision = alpha**2 * values + sigma**2
        found = (x_t - alpha * mean) @ vectors * (alpha * values / precision)
        if drawn:
            found += torch.randn(z.shape, generator=random) * (values * sigma**2 / precision).sqrt()
        restored = mean + found @ vectors.T
        return self._store.restore(restored.unflatten(1, self._store.shape))

    @cached_property
    def _model_space(self) -> Tensor:
        stream = self._store.stream(len(self._store), seed=self._seed)
        return next(stream).latents.flatten(1).float()

    @cached_property
    def _moments(self) -> tuple[Tensor, Tensor, Tensor]:
        """Mean [D], eigenvalues [D] and eigenvectors [D, D] of the other latents."""
        others = self._model_space[self._count :]
        values, vectors = torch.linalg.eigh(torch.cov(others.T))
        return others.mean(0), values.clamp_min(0), vectors
