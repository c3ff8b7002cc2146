"""The image sets of tools/ruler.py: alterations of real pictures, and samples of runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from ruler_gaussian import SETS as GAUSSIAN
from ruler_gaussian import GaussianSets
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from autoencoder.decode import check_fingerprint, decode_latents
from autoencoder.images import Preprocessing, Selection, open_source, read_pixels, select_at_random
from autoencoder.latent_files import open_latents
from autoencoder.models import Autoencoder, load_autoencoder
from latentddm.engine.errors import UserError
from latentddm.engine.seeding import numpy_generator

REFERENCE, UNALTERED, OTHERS, RECONSTRUCTED = "reference", "unaltered", "others", "reconstructed"
RESERVED = (REFERENCE, UNALTERED, OTHERS, RECONSTRUCTED)
BLUR_SIZE = 64  # edge of the pictures in whose pixels the blurs are given
LATENT_FILES = (".safetensors", ".npy")
BATCH = 50  # pictures that the autoencoder reconstructs at once


def halves(pixels: Tensor) -> Tensor:
    """The right half of each picture from the next one."""
    altered, middle = pixels.clone(), pixels.shape[2] // 2
    altered[:, :, middle:] = pixels.roll(1, 0)[:, :, middle:]
    return altered


def quarters(pixels: Tensor) -> Tensor:
    """The lower right quarter of each picture from the next one."""
    altered, middle = pixels.clone(), pixels.shape[2] // 2
    altered[:, middle:, middle:] = pixels.roll(1, 0)[:, middle:, middle:]
    return altered


def blurred(pixels: Tensor, deviation: float) -> Tensor:
    """A Gaussian blur; deviation: in pixels of a picture of 64 x 64."""
    sigma = deviation * pixels.shape[1] / BLUR_SIZE
    kernel = 2 * max(1, round(4 * sigma)) + 1
    images = gaussian_blur(pixels.permute(0, 3, 1, 2).float(), [kernel, kernel], [sigma, sigma])
    return _rounded(images.permute(0, 2, 3, 1))


def paler(pixels: Tensor, contrast: float) -> Tensor:
    """Contrast around medium grey times `contrast`."""
    return _rounded((pixels.float() - 127.5) * contrast + 127.5)


ALTERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "halves": halves,
    "quarters": quarters,
    "blur-0.6": lambda pixels: blurred(pixels, 0.6),
    "blur-1.0": lambda pixels: blurred(pixels, 1.0),
    "pale-0.85": lambda pixels: paler(pixels, 0.85),
}
"""Of pixels uint8 [N, S, S, 3], by the name of the set."""


@dataclass(frozen=True)
class ImageSets:
    """Sets of pixels uint8 [N, S, S, 3] by name, each made when it is needed.

    images: the source of the real pictures, of which the reference, the pictures that are altered
    (`unaltered`) and further ones (`others`) are three disjoint random choices of `count`.
    autoencoder: reference of the one whose reconstructions, altered too, are further sets.
    samples: folders, archives or latents of samples, by name; `count` at most. store: of latents of
    the autoencoder, for the sets of ruler_gaussian.
    """

    images: str
    size: int
    count: int
    seed: int = 0
    autoencoder: str | None = None
    samples: Mapping[str, str] = field(default_factory=dict)
    store: str | None = None
    _last: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        """UserError for a set with another's name, or one that cannot be made."""
        if self.count < 2:
            raise UserError("--count must be at least 2.")
        if self.store is not None and self.autoencoder is None:
            raise UserError("--store needs --autoencoder REF to decode its latents.")
        for name, source in self.samples.items():
            if (
                name in (*RESERVED, *GAUSSIAN)
                or name.removeprefix(f"{RECONSTRUCTED}-") in ALTERATIONS
            ):
                raise UserError(f"--samples {name}: the name is taken by a set of the tool.")
            if source.endswith(LATENT_FILES) and self.autoencoder is None:
                raise UserError(f"--samples {name}={source} are latents; add --autoencoder REF.")

    @property
    def names(self) -> list[str]:
        """The sets that are compared with the reference."""
        made = [UNALTERED, OTHERS, *ALTERATIONS]
        if self.autoencoder is not None:
            made += [RECONSTRUCTED, *(f"{RECONSTRUCTED}-{name}" for name in ALTERATIONS)]
        if self.store is not None:
            made += GAUSSIAN
        return made + list(self.samples)

    def describe(self, name: str) -> dict[str, Any]:
        """Everything that the pixels of a set depend on, as plain JSON values."""
        about: dict[str, Any] = {"set": name, "size": self.size, "count": self.count}
        if name in GAUSSIAN:
            about |= {"source": self.store, "seed": self.seed}
        elif name in self.samples:
            about |= {"source": self.samples[name]}
            if not self.samples[name].endswith(LATENT_FILES):
                return about
        else:
            about |= {"source": self.images, "seed": self.seed}
            if not name.startswith(RECONSTRUCTED):
                return about
        return about | {"autoencoder": self.autoencoder}

    def pixels(self, name: str) -> Tensor:
        """The pictures of a set; the last one made is kept, for the next feature space."""
        if name not in self._last:
            made = self._make(name)
            self._last.clear()
            self._last[name] = made
        return self._last[name]

    def _make(self, name: str) -> Tensor:
        if name in self.samples:
            return self._samples(self.samples[name])
        if name in GAUSSIAN:
            return decode_latents(self._gaussian.latents(name), self._loaded)
        if name.startswith(RECONSTRUCTED):
            alteration = name.removeprefix(RECONSTRUCTED).removeprefix("-")
            pixels = self._reconstructed
        elif name in (REFERENCE, OTHERS):
            return self._real[(REFERENCE, UNALTERED, OTHERS).index(name)]
        else:
            alteration, pixels = name.removeprefix(UNALTERED), self._real[1]
        return ALTERATIONS[alteration](pixels) if alteration else pixels

    @cached_property
    def _real(self) -> tuple[Tensor, ...]:
        source = open_source(self.images, self.size)
        if len(source) < 3 * self.count:
            raise UserError(
                f"{self.images} holds {len(source)} images; the reference, the altered pictures "
                f"and others need {3 * self.count}: lower --count."
            )
        random = numpy_generator(self.seed, "ruler")
        chosen = random.choice(len(source), 3 * self.count, replace=False).tolist()
        return self._read(Selection(source, chosen)).split(self.count)

    @cached_property
    def _reconstructed(self) -> Tensor:
        autoencoder = self._loaded
        parts = self._real[1].split(BATCH)
        return torch.cat([autoencoder.reconstruct(part).cpu() for part in parts])

    @cached_property
    def _loaded(self) -> Autoencoder:
        assert self.autoencoder is not None
        return load_autoencoder(self.autoencoder)

    @cached_property
    def _gaussian(self) -> GaussianSets:
        made = GaussianSets(str(self.store), self.count, self.seed)
        if made.fingerprint != self._loaded.fingerprint:
            raise UserError(f"{self.store} holds latents of another autoencoder; give its own.")
        return made

    def _samples(self, source: str) -> Tensor:
        if not source.endswith(LATENT_FILES):
            return self._read(select_at_random(open_source(source, self.size), self.count, 0))
        latents = open_latents(source)
        check_fingerprint(latents, self._loaded)
        return decode_latents(latents.read(0, min(self.count, len(latents))), self._loaded)

    def _read(self, source: Any) -> Tensor:
        pixels, _ = read_pixels(source, Preprocessing(size=self.size), workers=0)
        return torch.from_numpy(pixels)


def _rounded(images: Tensor) -> Tensor:
    return images.round().clamp(0, 255).byte()
