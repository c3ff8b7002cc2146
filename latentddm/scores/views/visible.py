"""The components of a sample that are still visible after the next step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from latentddm.scores.views.components import cosine_components, principal_axes
from latentddm.scores.views.view import (
    Differences,
    NoiseLevels,
    View,
    ViewConfig,
    ViewInputs,
    required,
)


@dataclass(frozen=True, kw_only=True)
class VisibleConfig(ViewConfig):
    """One spot: the norm of orthogonal components, each times its Wiener gain at s = t - step.

    A jump t -> s leaves x_s = alpha_s x_0 + noise of size sigma_s; of a component of variance l_k
    the next evaluation sees the share

        g_k(s) = alpha_s^2 l_k / (alpha_s^2 l_k + sigma_s^2),

    the squared correlation of the component in x_0 and in x_s. The squared norm is divided by the
    mean of g_k^2. An invertible linear map, so that the score stays strictly proper. At s = 0 it is
    the view `whole`. Principal directions beyond the samples have no variance: they are seen at
    s = 0 alone.
    """

    kind: Literal["visible"] = "visible"
    step: float = 0.25  # of the sampler: 1 / 4 for four evaluations on a uniform grid
    basis: Literal["principal", "cosine"] = "principal"  # cosines over positions, in each channel
    samples: int = 4096  # of the store, from which variances and axes are computed

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.step <= 1:
            raise ValueError(f"step must lie in (0, 1], not {self.step}")
        if self.samples < 2:
            raise ValueError(f"samples must be at least 2, not {self.samples}")

    def make(self, inputs: ViewInputs | None = None) -> View:
        """See `ViewConfig`."""
        given = required(inputs, self.kind)
        latents = given.latents(self.samples).double().cpu()
        if self.basis == "principal":
            axes, variances = principal_axes(latents)
            if axes.shape[1] < len(axes):
                variances = torch.cat([variances, variances.new_zeros(1)])  # of all others
            return Visible(self.step, given.schedule, variances, axes)
        return Visible(self.step, given.schedule, cosine_components(latents).var(0))


class Visible(View):
    """See `VisibleConfig`.

    variances: [C, H, W] of cosines, or [K] of the axes [D, K]; if K < D, [K + 1], with that of all
    other directions.
    """

    def __init__(
        self, step: float, schedule: NoiseLevels, variances: Tensor, axes: Tensor | None = None
    ) -> None:
        self.step, self.schedule = step, schedule
        self._variances, self._axes = variances, axes

    def features(self, x: Tensor, t: Tensor) -> Tensor:
        """Components times gains, [B, n, C, H, W] or [B, n, D]; their mean square is the norm's."""
        self._variances = self._variances.to(x)
        gains = self.gains((t - self.step).clamp_min(0))
        if self._axes is None:
            scale = gains.square().flatten(1).mean(1).rsqrt()
            return cosine_components(x) * (gains * scale[:, None, None, None])[:, None]
        self._axes = self._axes.to(x)
        dimension, kept = self._axes.shape
        components = x.flatten(2) @ self._axes
        along, others = gains[:, :kept], gains[:, kept:]  # of the others one gain, or none
        squares = along.square().sum(1) + (dimension - kept) * others.square().sum(1)
        scale = (squares / dimension).rsqrt()[:, None, None]
        if kept == dimension:
            return components * along[:, None] * scale
        back = ((along - others)[:, None] * components) @ self._axes.T
        return (others[:, None] * x.flatten(2) + back) * scale

    def gains(self, s: Tensor) -> Tensor:
        """g_k(s), [B, C, H, W] or [B, K], for s [B]."""
        s = s.reshape(-1, *[1] * self._variances.ndim).to(self._variances)
        signal = self.schedule.alpha(s).square() * self._variances
        noise = self.schedule.sigma(s).square()
        # At s = 0 a component without variance has the gain 1 too: all of it is visible.
        tiny = 1e-12
        return (signal + tiny) / (signal + noise + tiny)

    def mean_squares(self, differences: Differences) -> Tensor:
        """[B, n, 1]."""
        return differences.mean_squares_over_channels.mean(2, keepdim=True)
