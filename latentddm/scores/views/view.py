"""The protocol of a view: how two samples are compared before a distance is taken."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from latentddm.scores.in_time import linear_in_time


class Differences:
    """Differences of features, [B, n, C, ...]: of draws and targets first, then of pairs of draws.

    They are kept in parts, [B, n_k, C, ...] each; one large copy is made only for a view that reads
    `values`.
    """

    def __init__(self, parts: Sequence[Tensor]) -> None:
        self.parts = tuple(parts)

    @cached_property
    def values(self) -> Tensor:
        """All differences, [B, n, C, ...]."""
        return torch.cat(self.parts, dim=1)

    @cached_property
    def mean_squares_over_channels(self) -> Tensor:
        """Mean squares over C at each of the P positions, [B, n, P]."""
        # A sum and a small division: the gradient of a mean would be divided in full size.
        sums = [part.square().sum(2).reshape(*part.shape[:2], -1) for part in self.parts]
        return torch.cat(sums, dim=1) / self.parts[0].shape[2]


class View(Protocol):
    """One way to compare samples: the distance of a score is taken at V spots of a view.

    A view subclasses this protocol and is made by its `ViewConfig`, once for a training. Squares
    are means, not sums, so that views of other dimensions agree in scale.

    A nonlinear view (features of a network) and a view that depends on t (Wiener
    gains g_k(t) of principal components) have `features` of their own.
    """

    def features(self, x: Tensor, t: Tensor) -> Tensor:
        """Features [B, n, C', ...] of samples x [B, n, C, ...] at t [B]; by default x itself.

        Called on the draws, with gradients, and on the targets. Views that return x itself share
        one computation of the differences.
        """
        return x

    def mean_squares(self, differences: Differences) -> Tensor:
        """Mean squares of the differences of features at V spots, [B, n, V]."""


class NoiseLevels(Protocol):
    """alpha_t and sigma_t of x_t = alpha_t x_0 + sigma_t eps: a schedule, as views use it."""

    def alpha(self, t: Tensor) -> Tensor: ...

    def sigma(self, t: Tensor) -> Tensor: ...


class ViewInputs(Protocol):
    """The part of a training from which a view may be made."""

    @property
    def schedule(self) -> NoiseLevels: ...

    def latents(self, count: int) -> Tensor:
        """So many latents of the training's store, in model space, [count, C, H, W].

        The same at every call, on every process and after a resume; fewer from a smaller store.
        """


@dataclass(frozen=True, kw_only=True)
class ViewConfig(ABC):
    """The settings of a view; each kind adds its own. ValueError names one out of range.

    One more view is a file with a subclass, its `make`, and a line in VIEWS.
    """

    kind: str
    weight: float = 1.0  # at pure noise, t = 1
    weight_data: float | None = None  # at data, t = 0; None: the same at every time
    t_min: float = 0.0  # samples at t_min or below are left out
    share: float = 1.0  # of the batch is compared, with its weight divided by the share

    @staticmethod
    def kinds() -> Mapping[str, type[ViewConfig]]:
        """The registered views by kind."""
        return VIEWS

    def __post_init__(self) -> None:
        for name in ("weight", "weight_data"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise ValueError(f"{name} must be at least 0, not {value}")
        if not 0 <= self.t_min < 1:
            raise ValueError(f"t_min must lie in [0, 1), not {self.t_min}")
        if not 0 < self.share <= 1:
            raise ValueError(f"share must lie in (0, 1], not {self.share}")

    @abstractmethod
    def make(self, inputs: ViewInputs | None = None) -> View:
        """The view; ValueError without `inputs` if it is made from a training."""

    def check_latents(self, shape: Sequence[int]) -> None:  # noqa: B027  (most views fit all)
        """ValueError, naming the setting to change, if latents [C, H, W] do not fit."""

    def check_micro_batch(self, images: int) -> None:
        """ValueError if the share of so many images, a micro-batch, is no whole number.

        Else other images were compared in a batch of another number of parts.
        """
        compared = self.share * images
        if abs(compared - round(compared)) > 1e-9:
            raise ValueError(
                f"share of the view '{self.kind}' is {self.share:g}, of which {images} images have "
                "no whole number"
            )

    def resolved(self) -> ViewConfig:
        """The same with nothing left open, which a run keeps; UserError for what is not there."""
        return self

    @property
    def is_on(self) -> bool:
        """Whether its weight is above 0 at any time."""
        return bool(self.weight or self.weight_data)

    def weight_at(self, t: Tensor) -> Tensor | float:
        """The weight over the share, linear from `weight_data` at t = 0: a number, or [B]."""
        return linear_in_time(self.weight_data, self.weight, t) / self.share

    def rows(self, t: Tensor) -> Tensor | None:
        """Indices of the samples that are compared, of times t [B]; None: all."""
        if self.t_min == 0 and self.share == 1:
            return None
        # Evenly spaced in the batch, whose order is random.
        counted = torch.arange(len(t) + 1, device=t.device, dtype=torch.float64) * self.share
        chosen = (counted + 1e-9).floor().diff() > 0
        return (chosen & (t > self.t_min)).nonzero()[:, 0]


VIEWS: dict[str, type[ViewConfig]] = {}  # filled in scores/views/__init__.py


def required(inputs: ViewInputs | None, kind: str) -> ViewInputs:
    """The inputs, or ValueError without any."""
    if inputs is None:
        raise ValueError(f"the view '{kind}' is made from the latents of a training, not without")
    return inputs
