"""The protocol of a view: how two samples are compared before a distance is taken."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor


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

    A view subclasses this protocol and is a line in VIEWS; it is made without arguments, once for a
    run. Squares are means, not sums, so that views of other dimensions agree in scale.

    A nonlinear view (features of a network, frozen or learnt) and a view that depends on t (Wiener
    gains g_k(t) of principal components) have `features` of their own, and load their network or
    basis when they are made.
    """

    def features(self, x: Tensor, t: Tensor) -> Tensor:
        """Features [B, n, C', ...] of samples x [B, n, C, ...] at t [B]; by default x itself.

        Called on the draws, with gradients, and on the targets. Views that return x itself share
        one computation of the differences.
        """
        return x

    def mean_squares(self, differences: Differences) -> Tensor:
        """Mean squares of the differences of features at V spots, [B, n, V]."""
