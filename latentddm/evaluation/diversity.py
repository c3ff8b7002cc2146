"""LPIPS diversity: how different two images of one set look to a network, on average."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from autoencoder.perceptual import load_lpips, lpips_distances
from latentddm.engine.errors import UserError
from latentddm.engine.seeding import numpy_generator
from latentddm.evaluation.estimate import Estimate, bootstrap_interval, interval_description
from latentddm.evaluation.protocol import Protocol, Result
from latentddm.evaluation.resize import check_pixels
from latentddm.evaluation.weights import weights_hash

SMALLEST = 64
"""AlexNet's fifth layer still sees a picture of 64 pixels."""
PAIRS = 1000
PAIRS_AT_ONCE = 16


def lpips_diversity(
    images: Tensor | np.ndarray,
    *,
    pairs: int = PAIRS,
    seed: int = 0,
    network: nn.Module | None = None,
) -> Result:
    """The mean LPIPS distance (Zhang et al. 2018, AlexNet, v0.1) of random pairs of images.

    images: uint8 [N, S, S, 3], S >= 64. Each image is in at most one pair, so there are
    min(pairs, N // 2), which the bootstrap resamples. UserError for images too few or too small,
    and if the weights are not to be had. There is no reference: compare with the value of real
    images; far below it, a generator repeats itself.
    """
    images = torch.as_tensor(images)
    check_pixels(images)
    if len(images) < 2 or images.shape[1] < SMALLEST:
        raise UserError(
            f"LPIPS diversity needs two images of {SMALLEST} pixels a side at least; "
            f"there are {len(images)} of {images.shape[1]}."
        )
    network = network or load_lpips()
    order = numpy_generator(seed, "lpips pairs").permutation(len(images))
    count = min(pairs, len(images) // 2)
    distances = _pair_distances(network, images, order[: 2 * count].reshape(count, 2))
    estimate = Estimate(float(distances.mean()), distances - distances.mean(), "pairs of images")
    protocol = Protocol(
        metric="lpips",
        estimator=f"mean over {count} disjoint pairs",
        n=len(images),
        n_reference=0,
        size=images.shape[1],
        features="lpips-alex-v0.1",
        features_hash=weights_hash(network.state_dict()),
        resize="none",
        reference_hash="none",
        seed=seed,
        interval=interval_description(estimate),
        reference="none",
    )
    return Result(estimate.value, *bootstrap_interval(estimate, seed), protocol)


def _pair_distances(network: nn.Module, images: Tensor, pairs: np.ndarray) -> Tensor:
    distances = []
    for start in range(0, len(pairs), PAIRS_AT_ONCE):
        chunk = torch.from_numpy(pairs[start : start + PAIRS_AT_ONCE])  # [B, 2]
        first, second = images[chunk[:, 0]], images[chunk[:, 1]]
        distances.append(lpips_distances(network, first, second).double())
    return torch.cat(distances)
