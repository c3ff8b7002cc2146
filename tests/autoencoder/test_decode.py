"""Decoding to files: no lost files, equal bytes after a restart, wrong latents refused."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny_autoencoders import random_latents, random_pixels, save_network

from autoencoder.decode import decode_files, decode_latents
from autoencoder.image_io import image_grid, save_image
from autoencoder.images import Preprocessing
from autoencoder.latent_files import LatentFile, open_latents, save_latents
from autoencoder.models import Autoencoder, load_autoencoder
from autoencoder.sources.arrays import ArraySource
from autoencoder.store import LatentStore, encode_store
from latentddm.engine.errors import UserError


@pytest.fixture(scope="module")
def kl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_network("kl", tmp_path_factory.mktemp("networks") / "kl")


@pytest.fixture(scope="module")
def kl(kl_folder: Path) -> Autoencoder:
    return load_autoencoder(kl_folder)


@pytest.fixture
def latents_file(tmp_path: Path) -> Path:
    path = tmp_path / "latents.npy"
    np.save(path, random_latents(7, 4, 8).numpy().astype(np.float16))
    return path


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_decoding_in_batches_equals_decoding_at_once(
    kl: Autoencoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    latents, sizes = random_latents(7, 4, 8), list[int]()
    at_once = decode_latents(latents, kl, batch_size=7)
    whole = kl.decode

    def counted(batch: torch.Tensor) -> torch.Tensor:
        sizes.append(len(batch))
        return whole(batch)

    monkeypatch.setattr(kl, "decode", counted)
    in_batches = decode_latents(latents, kl, batch_size=3)
    assert sizes == [3, 3, 1]
    assert in_batches.shape == (7, 16, 16, 3)
    assert (in_batches.int() - at_once.int()).abs().max() <= 1  # rounding depends on the batch


@pytest.mark.parametrize("format", ["png", "jpeg", "webp", "webdataset"])
def test_files_hold_the_decoded_images(
    kl: Autoencoder, latents_file: Path, tmp_path: Path, format: str
) -> None:
    output = tmp_path / "images"
    assert decode_files(latents_file, output, kl, format=format, batch_size=3) == 7
    expected = decode_latents(LatentFile(latents_file).read(0, 3), kl, batch_size=3)[1].numpy()
    suffix = {"jpeg": "jpg", "webdataset": "png"}.get(format, format)
    if format == "webdataset":
        with tarfile.open(output / "images-000000.tar") as tar:
            assert tar.getnames() == [f"{index:06d}.png" for index in range(7)]
            member = tar.extractfile("000001.png")
            assert member is not None
            data = member.read()
    else:
        assert len(list(output.glob(f"*.{suffix}"))) == 7
        data = (output / f"000001.{suffix}").read_bytes()
    image = np.asarray(Image.open(io.BytesIO(data))).astype(int)
    tolerance = 12 if format == "jpeg" else 0  # on noise; the other formats are lossless
    assert np.abs(image - expected).mean() <= tolerance


@pytest.mark.parametrize("format", ["png", "webdataset"])
def test_a_second_run_writes_the_missing_files_byte_for_byte(
    kl: Autoencoder,
    latents_file: Path,
    tmp_path: Path,
    format: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("autoencoder.decode.SHARD_IMAGES", 3)
    output = tmp_path / "images"
    decode_files(latents_file, output, kl, format=format, batch_size=2)
    complete = _contents(output)
    made = [name for name in sorted(complete) if name != "decode.json"]
    lost = [made[1], made[-1]]
    for name in lost:
        (output / name).unlink()
        (output / f"{name}.99999999.partial").write_bytes(b"left by a killed process")
    untouched = {name: (output / name).stat().st_mtime_ns for name in complete if name not in lost}
    assert 0 < decode_files(latents_file, output, kl, format=format, batch_size=2) < 7
    assert _contents(output) == complete
    assert {name: (output / name).stat().st_mtime_ns for name in untouched} == untouched
    assert decode_files(latents_file, output, kl, format=format, batch_size=2) == 0


def test_the_work_is_shared_by_several_processes(
    kl: Autoencoder, latents_file: Path, tmp_path: Path
) -> None:
    decode_files(latents_file, tmp_path / "alone", kl, batch_size=2)
    made = [
        decode_files(latents_file, tmp_path / "shared", kl, batch_size=2, rank=rank, world_size=3)
        for rank in range(3)
    ]
    assert made == [3, 2, 2]
    assert _contents(tmp_path / "shared") == _contents(tmp_path / "alone")


def test_a_folder_with_other_files_is_refused(
    kl: Autoencoder, latents_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match=r"thesis\.txt"):
        decode_files(latents_file, tmp_path / "mine", kl)
    with pytest.raises(UserError, match=rf"{latents_file.name} is a file"):
        decode_files(latents_file, latents_file, kl)
    output = tmp_path / "images"
    decode_files(latents_file, output, kl)
    before = _contents(output)
    with pytest.raises(UserError, match="batch_size 16, now 3"):
        decode_files(latents_file, output, kl, batch_size=3)
    np.save(latents_file, np.zeros((7, 4, 8, 8), dtype=np.float16))
    with pytest.raises(UserError, match=r"latents sha256:.* now sha256:"):
        decode_files(latents_file, output, kl)

    assert _contents(output) == before
    assert json.loads((output / "decode.json").read_text())["autoencoder"] == kl.fingerprint


def test_latents_of_another_autoencoder_are_refused(kl: Autoencoder, tmp_path: Path) -> None:
    latents = random_latents(2, 4, 8)
    save_latents(tmp_path / "own.safetensors", latents, kl.fingerprint)
    save_latents(tmp_path / "other.safetensors", latents, "sha256:0")
    assert torch.equal(LatentFile(tmp_path / "own.safetensors").read(1, 2), latents[1:])
    assert decode_files(tmp_path / "own.safetensors", tmp_path / "images", kl) == 2
    with pytest.raises(UserError, match=rf"other\.safetensors .*sha256:0,.*{kl.fingerprint}"):
        decode_files(tmp_path / "other.safetensors", tmp_path / "none", kl)
    assert not (tmp_path / "none").exists()


def test_a_store_is_decoded_like_its_latents(
    kl: Autoencoder, kl_folder: Path, tmp_path: Path
) -> None:
    pixels = random_pixels(11, 16).numpy()
    options = {"preprocessing": Preprocessing(size=16), "workers": 0, "check": False}
    source = ArraySource(pixels, "noise")
    encode_store(source, kl, tmp_path / "store", **options, chunk_samples=4, batch_size=4)
    latents = open_latents(tmp_path / "store")
    assert (latents.autoencoder, latents.fingerprint) == (str(kl_folder), kl.fingerprint)
    stored = latents.read(0, len(latents))
    store = LatentStore(tmp_path / "store")
    keys = [int(store.key(index)) for index in range(len(store))]
    direct = kl.encode(torch.from_numpy(pixels[keys]))
    assert torch.equal(stored, direct.half().float())

    assert decode_files(tmp_path / "store", tmp_path / "images", kl, batch_size=3) == 11
    image = np.asarray(Image.open(tmp_path / "images" / "000010.png"))
    expected = decode_latents(stored[9:], kl, batch_size=3)[1].numpy()
    assert np.array_equal(image, expected)
    other = load_autoencoder(save_network("flux", tmp_path / "flux"))
    with pytest.raises(UserError, match=rf"{kl.fingerprint}.*{other.fingerprint}"):
        decode_files(tmp_path / "store", tmp_path / "others", other)


@pytest.mark.parametrize("moments", [False, True])
def test_reading_a_store_in_pieces_equals_reading_it_at_once(
    kl: Autoencoder, tmp_path: Path, moments: bool
) -> None:
    source = ArraySource(random_pixels(11, 16).numpy(), "noise")
    options = {"preprocessing": Preprocessing(size=16), "workers": 0, "check": False}
    encode_store(source, kl, tmp_path, **options, moments=moments, flips=True, chunk_samples=4)
    store = LatentStore(tmp_path)
    whole = store.raw(0, 11)
    assert whole.shape == (11, *store.shape)
    pieces = [store.raw(start, min(start + 3, 11)) for start in range(0, 11, 3)]
    assert torch.equal(torch.cat(pieces), whole)
    for start, stop in ((-1, 2), (3, 3), (9, 12)):
        with pytest.raises(UserError, match=f"{start} to {stop} .*samples 0 to 11"):
            store.raw(start, stop)


def test_other_files_than_latents_are_refused_by_name(tmp_path: Path) -> None:
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    np.save(tmp_path / "flat.npy", np.zeros((3, 4)))
    np.save(tmp_path / "integers.npy", np.zeros((1, 4, 8, 8), dtype=np.int64))
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    save_file({"a": torch.zeros(1), "b": torch.zeros(1)}, tmp_path / "two.safetensors")
    for name, message in {
        "objects.npy": "not a plain array",
        "flat.npy": r"\[3, 4\].*\[N,C,h,w\]",
        "integers.npy": "int64.*floating-point",
        "torn.safetensors": "damaged",
        "two.safetensors": '"latents" but a, b',
        "absent.npy": "does not exist",
        ".": "folder without a latent store",
    }.items():
        with pytest.raises(UserError, match=message) as caught:
            LatentFile(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)


def test_a_grid_places_images_row_by_row(tmp_path: Path) -> None:
    pixels = np.stack([np.full((4, 6, 3), value, dtype=np.uint8) for value in (10, 20, 30)])
    grid = image_grid(pixels, columns=2)
    assert grid.shape == (4 + 2 + 4, 6 + 2 + 6, 3)
    assert (grid[:4, :6] == 10).all()
    assert (grid[:4, 8:] == 20).all()
    assert (grid[6:, :6] == 30).all()
    assert (grid[6:, 8:] == 255).all()
    save_image(tmp_path / "grid.png", grid)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "grid.png")), grid)
    with pytest.raises(UserError, match=r"grid\.gif .*\.png, \.jpg"):
        save_image(tmp_path / "grid.gif", grid)
