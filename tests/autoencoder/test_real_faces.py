"""Reconstruction and tiled decoding with a real autoencoder on real faces; slow."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from autoencoder.decode import decode_latents
from autoencoder.images import open_source
from autoencoder.metrics import psnr
from autoencoder.models import Autoencoder, load_autoencoder
from autoencoder.preprocessing import Preprocessing
from autoencoder.sources.arrays import ArraySource
from autoencoder.store import LatentStore, encode_store
from autoencoder.tiling import spans

SHARED = Path(__file__).parents[2].parent / "shared"
TAEF2, FACES = SHARED / "weights" / "taef2", SHARED / "data" / "faces128"
COUNT = 64

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (TAEF2.exists() and FACES.exists()),
        reason="faces or weights of TAEF2 are missing",
    ),
]


@pytest.fixture(scope="module")
def taef2() -> Autoencoder:
    return load_autoencoder(TAEF2)


@pytest.fixture(scope="module")
def faces() -> torch.Tensor:
    """Real faces, 128 px, enlarged to 256: uint8 [64,256,256,3]."""
    source = open_source(FACES / "faces128-003.tar")
    images = (source.load(index).image for index in range(COUNT))
    enlarged = [image.resize((256, 256), Image.Resampling.BICUBIC) for image in images]
    return torch.from_numpy(np.stack([np.asarray(image) for image in enlarged]))


def test_taef2_reaches_33_db_and_a_store_costs_less_than_a_tenth(
    taef2: Autoencoder, faces: torch.Tensor, tmp_path: Path
) -> None:
    direct = torch.cat([taef2.reconstruct(batch) for batch in faces.split(8)])
    reached = float(psnr(faces, direct).mean())
    encode_store(
        ArraySource(faces.numpy(), "faces"),
        taef2,
        tmp_path / "store",
        preprocessing=Preprocessing(size=256),
        batch_size=8,
        workers=0,
    )
    store = LatentStore(tmp_path / "store")
    batches = islice(store.stream(8, seed=1), COUNT // 8)
    rows = []
    for batch in batches:
        decoded = decode_latents(store.restore(batch.latents), taef2, batch_size=8)
        keys = [int(store.key(int(index))) for index in batch.indices]
        rows.append(psnr(faces[keys], decoded))
    streamed = float(torch.cat(rows).mean())
    print(f"TAEF2, {COUNT} faces at 256 px: {reached:.3f} dB direct, {streamed:.3f} dB by a store")
    assert reached >= 33
    assert abs(reached - streamed) < 0.1


def test_tiled_decoding_of_a_large_image_has_no_seams(
    taef2: Autoencoder, faces: torch.Tensor
) -> None:
    # 1024 px: sixteen faces side by side.
    mosaic = faces[:16].reshape(4, 4, 256, 256, 3).transpose(1, 2).reshape(1, 1024, 1024, 3)
    latents = taef2.encode(mosaic)
    tile = 64
    whole, tiled = decode_latents(latents, taef2), decode_latents(latents, taef2, tile=tile)
    difference = (whole.int() - tiled.int()).abs().amax(3)[0]
    border = torch.zeros(1024, dtype=torch.bool)
    for span in spans(1024 // taef2.factor, tile):
        for edge in {span.own_start, span.own_stop} - {0, 1024 // taef2.factor}:
            border[(edge - 2) * taef2.factor : (edge + 2) * taef2.factor] = True
    along = border[:, None] | border[None, :]
    inside, elsewhere = difference[along], difference[~along]
    print(f"mean {difference.float().mean():.2e}, largest {inside.max()} and {elsewhere.max()}")
    assert difference.float().mean() < 0.05
    assert difference.max() <= 1
    assert inside.float().mean() <= elsewhere.float().mean() + 0.05
