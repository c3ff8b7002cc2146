"""Means over pairs of images: PSNR, SSIM, LPIPS of reconstructions; LPIPS diversity of samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from autoencoder.metrics import psnr, ssim
from autoencoder.perceptual import load_lpips, lpips_distances
from latentddm.engine.errors import UserError
from latentddm.engine.seeding import numpy_generator
from latentddm.evaluation.features import check_pixels, weights_hash
from latentddm.evaluation.protocol import Protocol, Result, mean_estimate

LARGEST_PSNR = 100.0
"""PSNR of equal images in dB, which have none; no other pair of 8-bit images comes near it."""
LPIPS_FEATURES = "lpips-alex-v0.1"
SMALLEST_SIZE = 64
"""Pixels a side below which the fifth layer of AlexNet has next to no positions."""
DIVERSITY_PAIRS = 1000
PAIRS_AT_ONCE = 16


@dataclass(frozen=True)
class PairMetric:
    """A number per pair of images, pixels uint8 [B, H, W, 3] twice -> [B].

    features and features_hash: the space of the comparison, for the protocol.
    """

    equation: str
    measure: Callable[[Tensor, Tensor], Tensor]
    features: str = "pixels"
    features_hash: str = "none"


def _open_psnr(lpips_weights: str | None, device: torch.device) -> PairMetric:
    equation = f"PSNR in dB, peak 255, at most {LARGEST_PSNR:g}"
    return PairMetric(equation, lambda a, b: psnr(a, b).clamp_max(LARGEST_PSNR))


def _open_ssim(lpips_weights: str | None, device: torch.device) -> PairMetric:
    return PairMetric("SSIM, Gaussian window of 11 px, K = 0.01, 0.03, mean of RGB", ssim)


def _open_lpips(lpips_weights: str | None, device: torch.device) -> PairMetric:
    network = load_lpips(device, weights=lpips_weights)
    return PairMetric(
        "LPIPS v0.1",
        lambda a, b: lpips_distances(network, a, b),
        LPIPS_FEATURES,
        weights_hash(network.state_dict()),
    )


PAIR_METRICS: dict[str, Callable[[str | None, torch.device], PairMetric]] = {
    "psnr": _open_psnr,
    "ssim": _open_ssim,
    "lpips": _open_lpips,
}
"""(file of AlexNet's weights or None, device) -> metric; UserError or JobError as `load_lpips`."""


def mean_result(
    name: str,
    metric: PairMetric,
    values: Tensor,
    *,
    size: int,
    images_hash: str,
    source: str,
    seed: int,
) -> Result:
    """The mean of `values` [N] over the images of `source`, with interval and protocol."""
    estimate = mean_estimate(values)
    protocol = Protocol(
        metric=name,
        estimator=f"{metric.equation}; mean over images",
        n=len(values),
        n_reference=len(values),
        size=size,
        features=metric.features,
        features_hash=metric.features_hash,
        resize="none",
        reference_hash=images_hash,
        seed=seed,
        interval=estimate.interval,
        reference=source,
    )
    return Result.of(estimate, protocol)


def open_lpips_diversity(device: torch.device | str) -> Callable[[Tensor, int], Result]:
    """lpips_diversity of (pixels, seed), its network loaded now."""
    network = load_lpips(device)
    return lambda images, seed: lpips_diversity(images, seed=seed, network=network)


def lpips_diversity(
    images: Tensor | np.ndarray,
    *,
    pairs: int = DIVERSITY_PAIRS,
    seed: int = 0,
    network: nn.Module | None = None,
) -> Result:
    """The mean LPIPS distance (Zhang et al. 2018, AlexNet, v0.1) of random pairs of images.

    images: uint8 [N, S, S, 3], S >= 64. The pairs are disjoint, min(pairs, N // 2) of them, and
    are the units of the bootstrap. UserError for too few or too small images and for unknown
    weights, JobError if a download fails. There is no reference: compare with the value of real
    images; a value far below it is a sign of repeated images.
    """
    images = torch.as_tensor(images)
    check_pixels(images)
    if len(images) < 2 or images.shape[1] < SMALLEST_SIZE:
        raise UserError(
            f"LPIPS diversity needs at least two images of at least {SMALLEST_SIZE} pixels a "
            f"side, not {len(images)} of {images.shape[1]}."
        )
    network = network or load_lpips()
    order = numpy_generator(seed, "lpips pairs").permutation(len(images))
    count = min(pairs, len(images) // 2)
    values = _pair_distances(network, images, order[: 2 * count].reshape(count, 2))
    estimate = mean_estimate(values, "pairs of images")
    protocol = Protocol(
        metric="lpips",
        estimator=f"mean over {count} disjoint pairs",
        n=len(images),
        n_reference=0,
        size=images.shape[1],
        features=LPIPS_FEATURES,
        features_hash=weights_hash(network.state_dict()),
        resize="none",
        reference_hash="none",
        seed=seed,
        interval=estimate.interval,
        reference="none",
    )
    return Result.of(estimate, protocol)


def _pair_distances(network: nn.Module, images: Tensor, pairs: np.ndarray) -> Tensor:
    values = []
    for start in range(0, len(pairs), PAIRS_AT_ONCE):
        chunk = torch.from_numpy(pairs[start : start + PAIRS_AT_ONCE])  # [B, 2]
        first, second = images[chunk[:, 0]], images[chunk[:, 1]]
        values.append(lpips_distances(network, first, second).double())
    return torch.cat(values)
