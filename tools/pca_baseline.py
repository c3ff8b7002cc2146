"""A baseline of autoencoders: principal components with as many numbers per picture.

    python tools/pca_baseline.py --train SRC --images SRC --size 128 --factor 8 --channels 4

Two linear autoencoders of the rate of one with that factor and those channels: `patches` keeps
`channels` components of every patch of factor x factor pixels, like a convolutional one;
`pictures` keeps the same count of numbers of the whole picture, better where pictures are aligned.
Fitted on --train, measured on --images.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np
import torch
from command_line import exit_code
from torch import Tensor

from autoencoder.images import Preprocessing, open_source, read_pixels, select_at_random
from autoencoder.metrics import psnr, ssim
from autoencoder.perceptual import load_lpips, lpips_distances
from latentddm.engine.errors import UserError

BATCH = 32


@dataclass(frozen=True)
class LinearCode:
    """mean [D] and orthonormal components [k, D] of the training vectors."""

    mean: Tensor
    components: Tensor

    @classmethod
    def fit(cls, vectors: Tensor, numbers: int) -> LinearCode:
        """The `numbers` principal components of vectors [N, D]; UserError if N is too small."""
        if numbers > min(vectors.shape):
            raise UserError(
                f"{numbers} components require as many training vectors and values in each; there "
                f"are {len(vectors)} of {vectors.shape[1]}; give more images or a lower rate."
            )
        mean = vectors.mean(0)
        centred = vectors - mean
        if len(vectors) <= vectors.shape[1]:  # the smaller of the two Gram matrices
            _, left = torch.linalg.eigh(centred @ centred.T)
            components = left[:, -numbers:].T @ centred
            return cls(mean, components / components.norm(dim=1, keepdim=True))
        _, right = torch.linalg.eigh(centred.T @ centred)
        return cls(mean, right[:, -numbers:].T)

    def reconstruct(self, vectors: Tensor) -> Tensor:
        """Vectors [N, D] through their components and back."""
        return self.mean + (vectors - self.mean) @ self.components.T @ self.components


def to_patches(pixels: Tensor, side: int) -> Tensor:
    """Pixels uint8 [N,S,S,3] -> float32 [N * (S/side)^2, side * side * 3]."""
    count, size = pixels.shape[:2]
    cells = size // side
    blocks = pixels.float().reshape(count, cells, side, cells, side, 3).transpose(2, 3)
    return blocks.reshape(count * cells**2, side**2 * 3)


def to_pixels(patches: Tensor, side: int, size: int) -> Tensor:
    """The inverse of `to_patches`, rounded and clamped: uint8 [N,S,S,3]."""
    cells = size // side
    blocks = patches.reshape(-1, cells, cells, side, side, 3).transpose(2, 3)
    return blocks.reshape(-1, size, size, 3).round().clamp(0, 255).to(torch.uint8)


def measure(
    code: LinearCode, images: Tensor, side: int, lpips_weights: str | None
) -> dict[str, float]:
    """Mean PSNR, SSIM and LPIPS of the reconstructions of images, pixels uint8 [N,S,S,3]."""
    network = load_lpips(weights=lpips_weights)
    rows = []
    for batch in images.split(BATCH):
        decoded = to_pixels(code.reconstruct(to_patches(batch, side)), side, batch.shape[1])
        distances = lpips_distances(network, batch, decoded)
        rows.append(torch.stack([psnr(batch, decoded), ssim(batch, decoded), distances], dim=1))
    means = torch.cat(rows).double().mean(0).tolist()
    return dict(zip(("psnr", "ssim", "lpips"), means, strict=True))


def run(arguments: argparse.Namespace) -> None:
    """Fit and measure both linear autoencoders."""
    size, factor, channels = arguments.size, arguments.factor, arguments.channels
    if size % factor:
        raise UserError(f"--size {size} is no multiple of --factor {factor}; change one of them.")
    train, images = (
        _read(source, size, count)
        for source, count in ((arguments.train, arguments.fit), (arguments.images, arguments.num))
    )
    numbers = channels * (size // factor) ** 2
    print(f"{numbers} numbers a picture; {len(train)} pictures to fit, {len(images)} to measure")
    for name, side, count in (("patches", factor, channels), ("pictures", size, numbers)):
        code = LinearCode.fit(to_patches(train, side), count)
        measured = measure(code, images, side, arguments.lpips_weights)
        print(name, *(f"{metric} {value:.4g}" for metric, value in measured.items()))


def _read(source: str, size: int, count: int | None) -> Tensor:
    chosen = select_at_random(open_source(source, size), count, seed=0)
    pixels, unreadable = read_pixels(chosen, Preprocessing(size=size))
    for image in unreadable:
        print(f"unreadable: {image}")
    return torch.from_numpy(np.asarray(pixels))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--train", required=True, metavar="SRC")
    parser.add_argument("--images", required=True, metavar="SRC")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--factor", type=int, default=8)
    parser.add_argument("--channels", type=int, default=4)
    parser.add_argument("--fit", type=int, default=4000, help="pictures to fit on (default 4000)")
    parser.add_argument("--num", type=int, default=500, help="pictures to measure (default 500)")
    parser.add_argument("--lpips-weights", metavar="FILE")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(exit_code(lambda: run(_arguments())))
