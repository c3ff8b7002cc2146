"""What is measured between each picture and its reconstruction, and the mean of it as a result."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from autoencoder.metrics import psnr, ssim
from autoencoder.perceptual import load_lpips, lpips_distances
from latentddm.evaluation.estimate import Estimate, bootstrap_interval, interval_description
from latentddm.evaluation.protocol import Protocol, Result
from latentddm.evaluation.weights import weights_hash

LARGEST_PSNR = 100.0
"""What equal pictures count as, in dB: of more, eight bits a colour can show nothing."""


@dataclass(frozen=True)
class PairMetric:
    """A number for each pair of pictures, pixels uint8 [B,H,W,3] twice -> [B].

    features and features_hash: what it looks at, for the protocol.
    """

    name: str
    equation: str
    measure: Callable[[Tensor, Tensor], Tensor]
    features: str = "pixels"
    features_hash: str = "none"


def open_pair_metrics(
    names: Iterable[str], lpips_weights: str | None, device: torch.device
) -> list[PairMetric]:
    """The metrics called psnr, ssim and lpips; UserError or JobError as `load_lpips`."""
    return [_open(name, lpips_weights, device) for name in names]


def mean_result(
    metric: PairMetric, values: Tensor, size: int, images_hash: str, source: str, seed: int
) -> Result:
    """The mean of `values` [N] over the images of `source`, with interval and protocol."""
    values = values.double()
    estimate = Estimate(float(values.mean()), values - values.mean())
    protocol = Protocol(
        metric=metric.name,
        estimator=f"{metric.equation}; mean over images",
        n=len(values),
        n_reference=len(values),
        size=size,
        features=metric.features,
        features_hash=metric.features_hash,
        resize="none",
        reference_hash=images_hash,
        seed=seed,
        interval=interval_description(estimate),
        reference=source,
    )
    return Result(estimate.value, *bootstrap_interval(estimate, seed), protocol)


def _open(name: str, lpips_weights: str | None, device: torch.device) -> PairMetric:
    if name == "psnr":
        equation = f"PSNR in dB, peak 255, at most {LARGEST_PSNR:g}"
        return PairMetric(name, equation, lambda a, b: psnr(a, b).clamp_max(LARGEST_PSNR))
    if name == "ssim":
        return PairMetric(name, "SSIM, Gaussian window of 11 px, K = 0.01, 0.03, mean of RGB", ssim)
    network = load_lpips(device, weights=lpips_weights)
    return PairMetric(
        name,
        "LPIPS v0.1",
        lambda a, b: lpips_distances(network, a, b),
        "lpips-alex-v0.1",
        weights_hash(network.state_dict()),
    )
