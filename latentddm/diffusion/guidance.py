"""Classifier-free guidance (Ho and Salimans, arXiv 2207.12598) with draws in the place of means.

The labels of a network are 0 ... classes - 1; `classes` is the label of unlabelled samples, and in
training a random share of the labels is replaced by it.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class LabelDenoiser(Protocol):
    """A denoiser with labels, int64 [B]; xi None: the mean."""

    def __call__(self, x_t: Tensor, t: Tensor, xi: Tensor | None, labels: Tensor) -> Tensor: ...


def drop_labels(labels: Tensor, uniform: Tensor, probability: float, classes: int) -> Tensor:
    """Labels [B] with `classes` (none) for those below 0 (unlabelled) and for a random share.

    uniform: numbers in [0, 1), [B]; a label is dropped where its number is below `probability`.
    """
    return torch.where((labels < 0) | (uniform < probability), classes, labels)


class GuidedDenoiser:
    """A denoiser for a label: D(none) + guidance (D(label) - D(none)), both with the same xi.

    With one xi for both, their difference has no noise of two independent draws. guidance 1 is the
    posterior given the label, and costs one evaluation; 0 is the posterior without label; above 1
    the label is exaggerated.
    """

    def __init__(
        self,
        denoiser: LabelDenoiser,
        label: int | Tensor,
        classes: int,
        guidance: float = 1.0,
    ) -> None:
        """label: one, or one for each row; ValueError for a label outside 0 ... classes - 1."""
        self.labels = torch.as_tensor(label)
        if bool(((self.labels < 0) | (self.labels >= classes)).any()):
            raise ValueError(f"label must lie in 0 ... {classes - 1}, not {self.labels.tolist()}")
        self.denoiser, self.none, self.guidance = denoiser, classes, guidance

    def __call__(self, x_t: Tensor, t: Tensor, xi: Tensor | None) -> Tensor:
        """x_0 [B, ...]; x_t: [B, ...]; t: [B]; xi: [B, ...], or None for the mean."""
        rows = len(x_t)
        labels = self.labels.to(x_t.device).expand(rows)
        if self.guidance == 1:
            return self.denoiser(x_t, t, xi, labels)
        both = self.denoiser(
            torch.cat([x_t, x_t]),
            torch.cat([t, t]),
            None if xi is None else torch.cat([xi, xi]),
            torch.cat([labels, torch.full_like(labels, self.none)]),
        )
        with_label, without = both.split(rows)
        return without + self.guidance * (with_label - without)
