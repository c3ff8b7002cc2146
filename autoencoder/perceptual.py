"""LPIPS (Zhang et al., arXiv 1801.03924): perceptual distance in the features of a backbone.

The linear heads, v0.1, come with the package lpips; the backbone is that of torchvision, from
torch's cache of downloads or from a given file.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from latentddm.engine.downloads import cached_weights
from latentddm.engine.errors import UserError

Backbone = Literal["alex", "vgg"]
SMALLEST_SIZE = 32
"""Pixels a side; the last feature map of a backbone is empty below this."""
WITHOUT_NETWORK = (
    "put the file there by hand, give its path (--lpips-weights FILE, or loss.perceptual_file "
    "in a config), or leave LPIPS out (of --metrics, or by loss.perceptual=none)."
)


def load_lpips(
    device: torch.device | str = "cpu",
    *,
    backbone: Backbone = "alex",
    weights: Path | str | None = None,
) -> nn.Module:
    """The frozen LPIPS network: (images, images), [B,3,H,W] in [-1, 1] each -> [B,1,1,1].

    weights: a file of torchvision's AlexNet or VGG16, of which `features` is used; None: the one
    in torch's cache, downloaded on first use. UserError if the file is missing or of another
    network, JobError if the download fails.
    """
    try:
        import lpips
    except ImportError:
        raise UserError("LPIPS needs the package lpips; run `pip install lpips`.") from None
    from autoencoder.models.weights import read_weights  # imports diffusers, hence not at the top

    path = Path(weights).expanduser() if weights is not None else _downloaded(backbone)
    stored = read_weights(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lpips uses deprecated names of torchvision
        network = lpips.LPIPS(net=backbone, pnet_rand=True, verbose=False)
    # slice3.6.weight of lpips is features.6.weight of torchvision
    trunk = network.net.state_dict()
    names = {name: f"features.{name.partition('.')[2]}" for name in trunk}
    for name, source in names.items():
        if source not in stored or stored[source].shape != trunk[name].shape:
            raise UserError(
                f"{path} does not hold the weights of torchvision's {_FULL_NAMES[backbone]}: "
                f"{source} is missing or of another shape; give torchvision's own file."
            )
    network.net.load_state_dict({name: stored[source] for name, source in names.items()})
    return network.eval().requires_grad_(False).to(device)


def lpips_distances(network: nn.Module, first: Tensor, second: Tensor) -> Tensor:
    """LPIPS of each pair of images, pixels uint8 [B,H,W,3] each -> float32 [B] on the CPU."""
    device = next(network.parameters()).device
    with torch.inference_mode():
        images = (
            pixels.to(device).permute(0, 3, 1, 2).float() / 127.5 - 1 for pixels in (first, second)
        )
        return network(*images).flatten().float().cpu()


_FULL_NAMES: dict[str, str] = {"alex": "AlexNet", "vgg": "VGG16"}


def _downloaded(backbone: Backbone) -> Path:
    from torchvision.models import get_model_weights

    url = get_model_weights(_FULL_NAMES[backbone].lower())["IMAGENET1K_V1"].url
    hash_prefix = url.rsplit("-", 1)[1].removesuffix(".pth")
    return cached_weights(url, hash_prefix, WITHOUT_NETWORK)
