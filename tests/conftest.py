"""A tiny autoencoder and a tiny latent store, made once for all tests of a session."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from latentddm.engine.cpu_threads import let_waiting_threads_sleep

# Before torch is loaded: threads that wait must sleep, or two workers slow each other down.
let_waiting_threads_sleep()
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def tiny_autoencoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch  # here, so that the tests of the maths start at once
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    network = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=3,
        mid_block_add_attention=False,
    )
    folder = tmp_path_factory.mktemp("autoencoder") / "tiny"
    network.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def encode_tiny() -> Callable[[str, Path, Path], Path]:
    """(images, autoencoder, folder) -> the folder, with the store of the images at 32 px."""
    from autoencoder.images import Preprocessing, open_source
    from autoencoder.models import load_autoencoder
    from autoencoder.store import encode_store

    def encode(images: str, autoencoder: Path, folder: Path) -> Path:
        encode_store(
            open_source(images, size=32),
            load_autoencoder(autoencoder),
            folder,
            preprocessing=Preprocessing(size=32),
            chunk_samples=8,
            workers=0,
            check=False,  # random weights reconstruct nothing
            show_progress=False,
        )
        return folder

    return encode


@pytest.fixture(scope="session")
def tiny_store(
    encode_tiny: Callable[[str, Path, Path], Path],
    tiny_autoencoder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    return encode_tiny("portraits:40", tiny_autoencoder, tmp_path_factory.mktemp("store") / "store")
