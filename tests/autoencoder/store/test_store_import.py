"""Import of latents in webdataset shards as a store."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from autoencoder.models import Autoencoder, wrap_network
from autoencoder.store import LatentStore, import_latents, verify_store
from latentddm.engine.errors import UserError

SHAPE = (3, 4, 4)


def npy(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def write_shard(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


@pytest.fixture
def latents() -> np.ndarray:
    values = np.random.default_rng(0).normal(size=(20, *SHAPE)) * 3 + 1
    return values.astype(np.float32)


@pytest.fixture
def shards(tmp_path: Path, latents: np.ndarray) -> Path:
    folder = tmp_path / "shards"
    folder.mkdir()
    for shard in range(2):
        members: dict[str, bytes] = {}
        for index in range(10 * shard, 10 * shard + 10):
            members[f"{index:04d}.latent.npy"] = npy(latents[index])
            members[f"{index:04d}.cls"] = str(index % 3).encode()
        write_shard(folder / f"{shard:03d}.tar", members)
    return folder


@pytest.fixture
def autoencoder() -> Autoencoder:
    torch.manual_seed(0)
    network = AutoencoderKL(
        block_out_channels=(8,), norm_num_groups=4, latent_channels=3, mid_block_add_attention=False
    )
    return wrap_network(network, reference="tiny", fingerprint="sha256:0")


def imported(
    shards: Path | str, autoencoder: Autoencoder, output: Path, **options: object
) -> LatentStore:
    options = {"check": False, "show_progress": False, "dtype": "float32", **options}
    import_latents(str(shards), autoencoder, output, **options)
    return LatentStore(output)


@pytest.mark.parametrize("pattern", ["", "{000..001}.tar", "*.tar"])
def test_every_latent_and_label_is_imported_and_standardised(
    shards: Path, latents: np.ndarray, autoencoder: Autoencoder, tmp_path: Path, pattern: str
) -> None:
    store = imported(str(shards / pattern), autoencoder, tmp_path / "store", shard_samples=8)
    assert len(store) == 20
    np.testing.assert_allclose(store.manifest.mean, latents.mean(axis=(0, 2, 3)), rtol=1e-5)
    batch = next(store.stream(20))
    sources = store.manifest.plan.source_order()[batch.indices]
    raw = store.restore(batch.latents).numpy()
    for row, index, label in zip(raw, sources.tolist(), batch.labels.tolist(), strict=True):
        assert label == index % 3
        np.testing.assert_allclose(row, latents[index], rtol=1e-4, atol=1e-5)
    assert verify_store(tmp_path / "store").ok


def test_a_scale_factor_is_divided_out(
    shards: Path, latents: np.ndarray, autoencoder: Autoencoder, tmp_path: Path
) -> None:
    store = imported(shards, autoencoder, tmp_path / "store", scale_factor=0.5)
    np.testing.assert_allclose(store.manifest.mean, 2 * latents.mean(axis=(0, 2, 3)), rtol=1e-5)


def test_a_second_call_resumes_with_the_same_bytes(
    shards: Path, autoencoder: Autoencoder, tmp_path: Path
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    imported(shards, autoencoder, whole, shard_samples=8)
    imported(shards, autoencoder, broken, shard_samples=8)
    (broken / "manifest.json").unlink()
    (broken / "latents-000001.tar").unlink()
    imported(shards, autoencoder, broken, shard_samples=8)
    for path in whole.glob("*.*"):
        assert path.read_bytes() == (broken / path.name).read_bytes()


def test_latents_of_another_autoencoder_are_refused(
    shards: Path, autoencoder: Autoencoder, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"tiny.*--scale-factor.*--no-check"):
        imported(shards, autoencoder, tmp_path / "store", check=True)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("member", "data", "message"),
    [
        ("a.npy", b"no array", r"a\.npy in .*000\.tar is not a plain array"),
        ("a.npy", npy(np.array([{"a": 1}], dtype=object)), r"a\.npy in .* is not a plain array"),
        ("a.npy", npy(np.zeros((3, 4))), r"a\.npy in .*float64 \[3, 4\].*\[C, h, w\]"),
        ("a.npy", npy(np.zeros(SHAPE, dtype=np.int64)), r"a\.npy in .*int64.*floating-point"),
        ("a.npy", npy(np.full(SHAPE, np.nan)), r"a\.npy in .*NaN"),
        ("a.npy", npy(np.zeros((5, 4, 4))), "5 channels.*tiny has 3"),
        ("a.txt", b"words", r"000\.tar holds no latents.*npy"),
    ],
)
def test_other_members_than_latents_are_refused_by_name(
    member: str, data: bytes, message: str, autoencoder: Autoencoder, tmp_path: Path
) -> None:
    write_shard(tmp_path / "000.tar", {member: data})
    with pytest.raises(UserError, match=message):
        imported(tmp_path / "000.tar", autoencoder, tmp_path / "store")


def test_a_latent_of_another_shape_is_refused_by_name(
    shards: Path, autoencoder: Autoencoder, tmp_path: Path
) -> None:
    write_shard(shards / "002.tar", {"odd.npy": npy(np.zeros((3, 8, 8), dtype=np.float32))})
    with pytest.raises(UserError, match=r"odd\.npy in .*\[3, 8, 8\].*\[3, 4, 4\]"):
        imported(shards, autoencoder, tmp_path / "store")
