"""A toy source and a toy autoencoder, for stores in milliseconds."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from autoencoder.images import Preprocessing, SourceImage, UnreadableImage
from autoencoder.store import encode_store
from autoencoder.store.layout import SampleInfo

SIZE = 16


@dataclass
class ToySource:
    """Smooth random images, functions of their index; those in `broken` are unreadable."""

    count: int
    labelled: bool = True
    broken: tuple[int, ...] = ()
    name: str = "toy"

    def __len__(self) -> int:
        return self.count

    def key(self, index: int) -> str:
        return f"class-{index % 7}/{index:05d}.png"

    def label(self, index: int) -> int | None:
        return index % 7 if self.labelled else None

    def load(self, index: int) -> SourceImage:
        if index in self.broken:
            raise UnreadableImage(self.key(index), "the file is empty")
        small = np.random.default_rng(index).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        image = Image.fromarray(small).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        return SourceImage(self.key(index), image, self.label(index))


@dataclass
class ToyAutoencoder:
    """Average pooling; the decoder repeats pixels. encoded: the number of images so far."""

    reference: str = "toy/pooling"
    fingerprint: str = "sha256:" + "a" * 64
    latent_channels: int = 3
    factor: int = 4
    dtype: torch.dtype = torch.float32
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    encoded: int = 0

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        self.encoded += len(pixels)
        images = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
        return torch.nn.functional.avg_pool2d(images, self.factor)

    def encode_moments(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean = self.encode(pixels)
        return mean, mean - 2

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        images = latents.repeat_interleave(self.factor, 2).repeat_interleave(self.factor, 3)
        return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)

    def reconstruct(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.decode(self.encode(pixels))


def encode_toy(folder: Path | str, source: ToySource | None = None, **options: Any) -> Any:
    """Encode a toy source in small shards; returns the manifest."""
    options = {
        "preprocessing": Preprocessing(size=SIZE),
        "batch_size": 8,
        "workers": 0,
        "chunk_samples": 8,
        "shard_samples": 32,
        "check": False,
        "show_progress": False,
        **options,
    }
    autoencoder = options.pop("autoencoder", None) or ToyAutoencoder()
    return encode_store(source or ToySource(200), autoencoder, folder, **options)


def folder_bytes(folder: Path) -> dict[str, bytes]:
    """The bytes of every file below a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def stored_chunks(folder: Path) -> list[tuple[list[np.ndarray], list[SampleInfo]]]:
    """The chunks of a store: one array per view and the samples; by tarfile and numpy alone."""
    chunks, views = [], []
    for shard in sorted(folder.glob("latents-*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                data = tar.extractfile(member).read()  # type: ignore[union-attr]
                if member.name.endswith(".npy"):
                    views.append(np.load(io.BytesIO(data)))
                    continue
                value = json.loads(data)
                rows = zip(value["keys"], value["labels"], value["sources"], strict=True)
                chunks.append((views, [SampleInfo(*row) for row in rows]))
                views = []
    return chunks


@pytest.fixture
def toy() -> SimpleNamespace:
    """The stand-ins of this folder: Source, Autoencoder, encode, folder_bytes, chunks, size."""
    return SimpleNamespace(
        Source=ToySource,
        Autoencoder=ToyAutoencoder,
        encode=encode_toy,
        folder_bytes=folder_bytes,
        chunks=stored_chunks,
        size=SIZE,
    )
