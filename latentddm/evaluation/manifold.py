"""Precision, recall, density and coverage, by balls of nearest neighbours."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from latentddm.engine.errors import UserError
from latentddm.evaluation.pairs import centred, distances, row_blocks
from latentddm.evaluation.protocol import Estimate, mean_estimate

NEIGHBOURS = 5


@dataclass(frozen=True)
class Prdc:
    """Four metrics of samples and a reference, all near 1 for two sets of one distribution.

    precision: share of samples inside some reference ball. recall: share of the reference inside
    some sample ball. density: number of reference balls around a sample, over k. coverage: share of
    the reference with a sample in its ball.
    """

    precision: Estimate
    recall: Estimate
    density: Estimate
    coverage: Estimate


def prdc(samples: Tensor, reference: Tensor, neighbours: int = NEIGHBOURS) -> Prdc:
    """Precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020).

    The ball of a row is closed; its radius is the distance to the k-th nearest other row of its own
    set. Precision and density are means over the samples, recall and coverage over the reference,
    and their intervals resample the same. Cost: O(N M) distances, in blocks. UserError unless both
    sides have more than `neighbours` rows.
    """
    fewest = min(len(samples), len(reference))
    if not 1 <= neighbours < fewest:
        raise UserError(
            f"prdc with {neighbours} neighbours needs at least one neighbour and more than "
            f"{neighbours} images on each side; the smaller side has {fewest}."
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
        precision=mean_estimate(balls_around_sample > 0),
        recall=mean_estimate(recalled, "reference images"),
        density=mean_estimate(balls_around_sample / neighbours),
        coverage=mean_estimate(covered, "reference images"),
    )


def _radii(features: Tensor, neighbours: int) -> Tensor:
    """The distance of each row to its k-th nearest other row, [N]."""
    radii = []
    for rows in row_blocks(len(features), len(features)):
        gaps = distances(features[rows], features)
        gaps[torch.arange(len(gaps)), torch.arange(rows.start, rows.stop)] = torch.inf
        radii.append(gaps.kthvalue(neighbours, dim=1).values)
    return torch.cat(radii)
