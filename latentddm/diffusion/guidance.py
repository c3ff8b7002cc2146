"""Class labels: dropped now and then in training, so that they can guide in sampling.

Classifier-free guidance (Ho and Salimans, arXiv 2207.12598). A network knows labels 0 ...
classes - 1; the label `classes` means that none is given.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class LabelDenoiser(Protocol):
    """A denoiser that also takes labels, int64 [B]."""

    def __call__(self, x_t: Tensor, t: Tensor, xi: Tensor, labels: Tensor) -> Tensor: ...


def drop_labels(labels: Tensor, uniform: Tensor, probability: float, classes: int) -> Tensor:
    """Labels [B] in which those below 0 (unlabelled), and a random share, say `classes` (none).

    uniform: numbers in [0, 1), [B].
    """
    return torch.where((labels < 0) | (uniform < probability), classes, labels)


class GuidedDenoiser:
    """A denoiser for a label: D(none) + guidance (D(label) - D(none)), both with the same xi.

    The same xi makes the difference one between what the two posteriors give for the same draw,
    without the noise of two draws. guidance 1 is the posterior given the label, and costs one
    evaluation; 0 is the one without label; above 1 the label is exaggerated.
    """

    def __init__(
        self,
        denoiser: LabelDenoiser,
        label: int | Tensor,
        classes: int,
        guidance: float = 1.0,
    ) -> None:
        """label: one, or one for each row; ValueError for one that the network does not know."""
        self.labels = torch.as_tensor(label)
        if bool(((self.labels < 0) | (self.labels >= classes)).any()):
            raise ValueError(f"label must lie in 0 ... {classes - 1}, not {self.labels.tolist()}")
        self.denoiser, self.none, self.guidance = denoiser, classes, guidance

    def __call__(self, x_t: Tensor, t: Tensor, xi: Tensor) -> Tensor:
        rows = len(x_t)
        labels = self.labels.to(x_t.device).expand(rows)
        if self.guidance == 1:
            return self.denoiser(x_t, t, xi, labels)
        both = self.denoiser(
            torch.cat([x_t, x_t]),
            torch.cat([t, t]),
            torch.cat([xi, xi]),
            torch.cat([labels, torch.full_like(labels, self.none)]),
        )
        with_label, without = both.split(rows)
        return without + self.guidance * (with_label - without)
