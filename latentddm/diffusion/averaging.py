"""The mean denoiser of a network that draws: the average of its draws at one x_t."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from latentddm.diffusion.sampling import Denoiser, normal_like

DRAWS = 16


class AveragedDenoiser:
    """Monte Carlo estimate of the posterior mean E[x_0 | x_t], from antithetic pairs of xi.

        D(x_t, t) = 1/n sum_j [ G(x_t, t, xi_j) + G(x_t, t, -xi_j) ],   j = 1 ... n/2

    Its error falls as 1 / sqrt(n); the part that is odd in xi cancels within each pair. One call
    is one evaluation of a mean denoiser, at the price of n draws of the network: what remains of a
    DDM when its draws are replaced by their mean, as in plain diffusion.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        draws: int = DRAWS,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
    ) -> None:
        """denoiser: takes xi [B, n, ...] and returns draws [B, n, ...]; draws: n.

        generator: of xi; one for the batch, or one for each sample, so that a sample does not
        depend on the batch it is drawn in. ValueError for an odd n and for one below 2.
        """
        if draws < 2 or draws % 2:
            raise ValueError(f"draws must be an even number of at least 2, not {draws}.")
        self.denoiser, self.draws, self.generator = denoiser, draws, generator

    def __call__(self, x_t: Tensor, t: Tensor, xi: Tensor) -> Tensor:
        """The average of n draws of x_0, [B, ...], for x_t [B, ...] at t [B].

        xi: not read, as in every mean denoiser; fresh xi is drawn for each call.
        """
        half = x_t[:, None].expand(-1, self.draws // 2, *x_t.shape[1:])
        own = normal_like(half, self.generator)
        return self.denoiser(x_t, t, torch.cat([own, -own], dim=1)).mean(dim=1)
