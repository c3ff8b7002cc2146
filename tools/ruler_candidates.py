"""Feature spaces that tools/ruler.py tries as rivals of the built-in ones; not part of the product.

alexnet:LAYERS/POOLING    LPIPS's backbone, e.g. alexnet:3+4+5/mean (weights: torch's cache)
vgg16:LAYERS/POOLING      the same with VGG16
random:SEED               convolutions of random weights
trunk:RUN@TIMES           the middle of a trained network on noised latents: trunk:RUN@.3+.6
and those of latentddm/evaluation/extractors.py
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoencoder.perceptual import Backbone, load_lpips
from autoencoder.store import Standardisation
from latentddm.diffusion.process import corrupt
from latentddm.engine.errors import UserError
from latentddm.engine.seeding import torch_generator
from latentddm.evaluation.extractors import Device, Opener
from latentddm.evaluation.features import check_pixels, weights_hash
from latentddm.inference.generator import Generator

CHUNK = 50
POOLINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda maps: maps.mean((2, 3)),
    "deviation": lambda maps: torch.cat([maps.mean((2, 3)), maps.std((2, 3))], 1),
    "max": lambda maps: maps.amax((2, 3)),
    "2x2": lambda maps: F.adaptive_avg_pool2d(maps, 2).flatten(1),
    "4x4": lambda maps: F.adaptive_avg_pool2d(maps, 4).flatten(1),
}
"""Maps [N, C, h, w] -> [N, D]."""


class PooledMaps:
    """Pooled feature maps of a network: maps is a function of pixels uint8 [N, S, S, 3]."""

    resize = "none"

    def __init__(
        self,
        name: str,
        identity: str,
        maps: Callable[[Tensor], list[Tensor]],
        pooling: str,
        size: int,
    ) -> None:
        if pooling not in POOLINGS:
            raise UserError(
                f"{name}: there is no pooling {pooling!r}; known: {', '.join(POOLINGS)}."
            )
        self.name, self.hash = name, identity
        self._maps, self._pool = maps, POOLINGS[pooling]
        self.dimension = self(torch.zeros(1, size, size, 3, dtype=torch.uint8)).shape[1]

    @torch.inference_mode()
    def __call__(self, pixels: Tensor) -> Tensor:
        """pixels: uint8 [N, S, S, 3] -> float32 [N, D] on the CPU."""
        check_pixels(pixels)
        parts = (self._maps(chunk) for chunk in pixels.split(CHUNK))
        return torch.cat([torch.cat([self._pool(m) for m in maps], 1).cpu() for maps in parts])


def _backbone(name: str, backbone: Backbone) -> Opener:
    """The opener of LPIPS's backbone: its maps with channels normalised as LPIPS does."""

    def open_it(argument: str, size: int, device: Device) -> PooledMaps:
        layers, _, pooling = argument.partition("/")
        try:
            chosen = [int(layer) - 1 for layer in layers.split("+")]
        except ValueError:
            chosen = []
        if not chosen or not all(0 <= layer < 5 for layer in chosen):
            raise UserError(f"{name}{argument}: give layers (1 to 5) and a pooling, as 4+5/mean.")
        network: Any = load_lpips(device, backbone=backbone)

        def maps(pixels: Tensor) -> list[Tensor]:
            images = pixels.to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
            found = network.net(network.scaling_layer(images))
            return [F.normalize(found[layer], dim=1) for layer in chosen]

        identity = weights_hash(network.net.state_dict())
        return PooledMaps(f"{name}{argument}", identity, maps, pooling, size)

    return open_it


def _open_random(argument: str, size: int, device: Device) -> PooledMaps:
    """Three layers of random unit filters, each with channels normalised, ReLU and 2 x 2 means."""
    random = torch_generator(int(argument or 0), "random convolutions")
    layers = nn.ModuleList()
    for channels, width in ((3, 48), (48, 96), (96, 192)):
        layer = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        weights = torch.randn(layer.weight.shape, generator=random)
        layer.weight.data = F.normalize(weights.flatten(1), dim=1).view_as(weights)
        layers.append(layer)
    layers.requires_grad_(False).to(device)

    def maps(pixels: Tensor) -> list[Tensor]:
        state = pixels.to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
        found = []
        for layer in layers:
            state = layer(state)
            state = F.relu(F.layer_norm(state.movedim(1, -1), state.shape[1:2])).movedim(-1, 1)
            state = F.avg_pool2d(state, 2)
            found.append(state)
        return found[1:]

    name = f"random:{argument}"
    return PooledMaps(name, weights_hash(layers.state_dict()), maps, "deviation", size)


def _open_trunk(argument: str, size: int, device: Device) -> PooledMaps:
    """Means and deviations of a run's middle map, on latents noised at given times.

    The noise of a position is the same for all pictures.
    """
    run, _, listed = argument.rpartition("@")
    try:
        times = [float(time) for time in listed.split("+")]
    except ValueError:
        times = []
    if not run or not times or not all(0 <= time <= 1 for time in times):
        raise UserError(f"trunk:{argument}: give a run and times in [0, 1], as trunk:RUN@0.3+0.6.")
    generator = Generator.load(run, device)
    space, network = generator.space, generator.network
    autoencoder = space.load_autoencoder(device)
    if size != space.shape[1] * autoencoder.factor:
        raise UserError(f"{run} makes pictures of {space.shape[1] * autoencoder.factor} pixels.")
    noise = torch.randn(space.shape, generator=torch_generator(0, "trunk")).to(device)
    scale = Standardisation(space.mean, space.std)
    kept: list[Any] = []
    parts = [*network.trunk, *network.draw_parts]
    # The middle of the sequence: a UNet's coarsest level, the middle block of a DiT.
    parts[len(parts) // 2].register_forward_hook(lambda _, __, output: kept.append(output))

    def maps(pixels: Tensor) -> list[Tensor]:
        latents = scale.standardise(autoencoder.encode(pixels.to(device)))
        kept.clear()
        for time in times:
            t = torch.full((len(latents),), time, device=device)
            network(corrupt(latents, t, noise.expand_as(latents), generator.schedule), t, None)
        return [_as_map(output) for output in kept]

    identity = weights_hash(network.state_dict())
    return PooledMaps(f"trunk:{argument}", identity, maps, "deviation", size)


def _as_map(output: Any) -> Tensor:
    """[N, C, h, w] of a UNet's state or of a DiT's tokens [N, positions, C]."""
    output = getattr(output, "x", output)
    return output if output.ndim == 4 else output.transpose(1, 2)[..., None]


CANDIDATES: dict[str, Opener] = {
    "alexnet:": _backbone("alexnet:", "alex"),
    "vgg16:": _backbone("vgg16:", "vgg"),
    "random:": _open_random,
    "trunk:": _open_trunk,
}
"""By the beginning of their names, as in EXTRACTORS."""
