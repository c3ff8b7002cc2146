"""LPIPS diversity: how different two images of one set look to a network, on average."""

from __future__ import annotations

import hashlib
import warnings

import numpy as np
import torch
from torch import Tensor, nn

from latentddm.engine.errors import RequestError
from latentddm.engine.randomness import numpy_generator
from latentddm.evaluation.downloads import cached_weights
from latentddm.evaluation.estimate import Estimate, bootstrap_interval, interval_description
from latentddm.evaluation.protocol import Protocol, Result
from latentddm.evaluation.resize import check_pixels

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
    min(pairs, N // 2), which the bootstrap resamples. RequestError for images too few or too small,
    and if the weights are not to be had. There is no reference: compare with the value of real
    images; far below it, a generator repeats itself.
    """
    images = torch.as_tensor(images)
    check_pixels(images)
    if len(images) < 2 or images.shape[1] < SMALLEST:
        raise RequestError(
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
        features_hash=_weights_hash(network),
        resize="none",
        reference_hash="none",
        seed=seed,
        interval=interval_description(estimate),
        reference="none",
    )
    return Result(estimate.value, *bootstrap_interval(estimate, seed), protocol)


def load_lpips(device: torch.device | str = "cpu") -> nn.Module:
    """LPIPS on AlexNet: the linear heads from the package lpips, the backbone from torchvision."""
    try:
        import lpips
    except ImportError:
        raise RequestError("LPIPS needs the package lpips; run `pip install lpips`.") from None
    from torchvision.models import AlexNet_Weights

    url = AlexNet_Weights.IMAGENET1K_V1.url
    path = cached_weights(
        url,
        url.rsplit("-", 1)[1].removesuffix(".pth"),
        "bring the file there from another machine, or leave the metric lpips out.",
    )
    backbone = torch.load(path, map_location="cpu", weights_only=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lpips calls torchvision by names of long ago
        network = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    trunk = network.net.state_dict()  # slice3.6.weight is torchvision's features.6.weight
    names = {name: "features." + name.split(".", 1)[1] for name in trunk}
    network.net.load_state_dict({name: backbone[source] for name, source in names.items()})
    return network.eval().requires_grad_(False).to(device)


@torch.inference_mode()
def _pair_distances(network: nn.Module, images: Tensor, pairs: np.ndarray) -> Tensor:
    device = next(network.parameters()).device
    distances = []
    for start in range(0, len(pairs), PAIRS_AT_ONCE):
        chunk = torch.from_numpy(pairs[start : start + PAIRS_AT_ONCE])  # [B, 2]
        both = images[chunk.flatten()].to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
        distances.append(network(both[0::2], both[1::2]).flatten().double().cpu())
    return torch.cat(distances)


def _weights_hash(network: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, values in network.state_dict().items():
        digest.update(name.encode() + values.float().cpu().numpy().tobytes())
    return "sha256:" + digest.hexdigest()
