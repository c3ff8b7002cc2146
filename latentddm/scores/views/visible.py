"""The components of a sample that are still visible after the next step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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
    the view `whole`.
    """

    kind: Literal["visible"] = "visible"
    step: float = 0.25  # of the sampler: 1 / 4 for four evaluations on a uniform grid
    basis: Literal["cosine", "principal"] = "cosine"  # cosines over positions, in each channel
    samples: int = 4096  # of the store, from which the variances are computed

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
            return Visible(self.step, given.schedule, variances, axes)
        return Visible(self.step, given.schedule, cosine_components(latents).var(0))


class Visible(View):
    """See `VisibleConfig`. variances: [C, H, W] of cosines, or [K] of the axes [D, K]."""

    def __init__(
        self, step: float, schedule: NoiseLevels, variances: Tensor, axes: Tensor | None = None
    ) -> None:
        self.step, self.schedule = step, schedule
        self._variances, self._axes = variances, axes

    def features(self, x: Tensor, t: Tensor) -> Tensor:
        """Components [B, n, C, H, W] or [B, n, K]; their mean square is the squared norm."""
        self._variances = self._variances.to(x)
        if self._axes is None:
            components = cosine_components(x)
        else:
            self._axes = self._axes.to(x)
            components = x.flatten(2) @ self._axes
        gains = self.gains((t - self.step).clamp_min(0))
        scale = gains.square().flatten(1).mean(1).rsqrt()
        factors = gains * scale.reshape(-1, *[1] * (gains.ndim - 1))
        return components * factors[:, None]

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
