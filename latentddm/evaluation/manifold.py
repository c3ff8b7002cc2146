"""Precision, recall, density and coverage: two sets seen through balls of nearest neighbours."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from latentddm.engine.errors import UserError
from latentddm.evaluation.estimate import Estimate
from latentddm.evaluation.pairs import centred, distances, row_blocks

NEIGHBOURS = 5


@dataclass(frozen=True)
class Prdc:
    """Four numbers about samples and a reference; all are near 1 for two sets of one distribution.

    precision: share of samples inside some reference ball. recall: share of the reference inside
    some sample ball. density: reference balls around a sample, over k. coverage: share of the
    reference whose ball holds a sample.
    """

    precision: Estimate
    recall: Estimate
    density: Estimate
    coverage: Estimate


def prdc(samples: Tensor, reference: Tensor, neighbours: int = NEIGHBOURS) -> Prdc:
    """Precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020).

    The ball of a row reaches to its k-th nearest neighbour in its own set, itself not counted, and
    is closed. Precision and density are means over the samples, recall and coverage over the
    reference, and so are their intervals.
    """
    fewest = min(len(samples), len(reference))
    if not 1 <= neighbours < fewest:
        raise UserError(
            f"Precision and recall with {neighbours} neighbours need more than {neighbours} images "
            f"on each side, and at least one neighbour; the smaller side has {fewest}."
        )
    samples, reference = centred(samples, reference)
    sample_radii, radii = _radii(samples, neighbours), _radii(reference, neighbours)
    balls_around_sample = torch.zeros(len(samples), dtype=torch.float64, device=samples.device)
    recalled = torch.zeros(len(reference), dtype=torch.bool, device=samples.device)
    covered = torch.zeros_like(recalled)
    for rows in row_blocks(len(samples), len(reference)):
        gaps = distances(samples[rows], reference)
        inside = gaps <= radii
        balls_around_sample[rows] = inside.sum(1, dtype=torch.float64)
        recalled |= (gaps <= sample_radii[rows, None]).any(0)
        covered |= inside.any(0)
    return Prdc(
        precision=_mean(balls_around_sample > 0, "images"),
        recall=_mean(recalled, "reference images"),
        density=_mean(balls_around_sample / neighbours, "images"),
        coverage=_mean(covered, "reference images"),
    )


def _radii(features: Tensor, neighbours: int) -> Tensor:
    """The distance of each row to its k-th nearest other row, [N]."""
    radii = []
    for rows in row_blocks(len(features), len(features)):
        gaps = distances(features[rows], features)
        gaps[torch.arange(len(gaps)), torch.arange(rows.start, rows.stop)] = torch.inf
        radii.append(gaps.kthvalue(neighbours, dim=1).values)
    return torch.cat(radii)


def _mean(values: Tensor, unit: str) -> Estimate:
    values = values.double()
    return Estimate(float(values.mean()), values - values.mean(), unit)
