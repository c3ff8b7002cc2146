"""Encoding: equal bytes for any division of the work, nothing lost, nothing overwritten."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from autoencoder.store import LatentStore
from latentddm.engine.errors import JobError, UserError


def test_the_bytes_are_independent_of_workers_and_processes(
    tmp_path: Path, toy: SimpleNamespace
) -> None:
    source = toy.Source(200, broken=(3, 77, 78))
    toy.encode(tmp_path / "one", source)
    toy.encode(tmp_path / "workers", source, workers=2)
    parts = [toy.encode(tmp_path / "three", source, rank=rank, world_size=3) for rank in (2, 0, 1)]
    expected = toy.folder_bytes(tmp_path / "one")
    assert toy.folder_bytes(tmp_path / "workers") == expected
    assert toy.folder_bytes(tmp_path / "three") == expected
    assert [part is None for part in parts] == [True, True, False]


def test_a_finished_store_is_not_encoded_again(tmp_path: Path, toy: SimpleNamespace) -> None:
    first, second = toy.Autoencoder(), toy.Autoencoder()
    toy.encode(tmp_path / "store", autoencoder=first)
    before = toy.folder_bytes(tmp_path / "store")
    toy.encode(tmp_path / "store", autoencoder=second)
    assert (first.encoded, second.encoded) == (200, 0)
    assert toy.folder_bytes(tmp_path / "store") == before


def test_only_missing_shards_are_encoded(tmp_path: Path, toy: SimpleNamespace) -> None:
    folder = tmp_path / "store"
    toy.encode(folder)
    before = toy.folder_bytes(folder)
    (folder / "latents-000002.tar").unlink()
    (folder / "encoding" / "latents-000004.json").unlink()
    (folder / "manifest.json").unlink()
    (folder / "latents-000002.tar.99999999.partial").write_bytes(b"left by a killed process")
    (folder / "encoding" / "plan.json.99999999.partial").write_bytes(b"left too")
    again = toy.Autoencoder()
    toy.encode(folder, autoencoder=again)
    assert again.encoded == 64
    assert toy.folder_bytes(folder) == before


def test_statistics_equal_those_of_all_stored_values(tmp_path: Path, toy: SimpleNamespace) -> None:
    manifest = toy.encode(tmp_path / "store", flips=True)
    chunks = toy.chunks(tmp_path / "store")
    values = np.concatenate([np.concatenate(views) for views, _ in chunks])
    np.testing.assert_allclose(manifest.mean, values.mean((0, 2, 3), np.float64), rtol=1e-12)
    np.testing.assert_allclose(manifest.std, values.std((0, 2, 3), np.float64), rtol=1e-12)


def test_every_image_is_stored_once_under_its_key(tmp_path: Path, toy: SimpleNamespace) -> None:
    source, autoencoder = toy.Source(100, broken=(8,)), toy.Autoencoder()
    toy.encode(tmp_path / "store", source)
    seen = []
    for (values,), infos in toy.chunks(tmp_path / "store"):
        for row, info in zip(values, infos, strict=True):
            image = source.load(info.source_index)
            pixels = torch.from_numpy(np.array(image.image))[None]
            expected = autoencoder.encode(pixels)[0].half().numpy()
            assert (info.key, info.label) == (image.key, image.label)
            np.testing.assert_array_equal(row, expected)
            seen.append(info.source_index)
    assert sorted(seen) == [index for index in range(100) if index != 8]
    assert seen != sorted(seen)


def test_without_a_seed_the_order_is_that_of_the_source(
    tmp_path: Path, toy: SimpleNamespace
) -> None:
    toy.encode(tmp_path / "store", toy.Source(50), seed=None)
    infos = [info for _, part in toy.chunks(tmp_path / "store") for info in part]
    assert [info.source_index for info in infos] == list(range(50))


def test_flipped_views_are_encodings_of_mirrored_images(
    tmp_path: Path, toy: SimpleNamespace
) -> None:
    toy.encode(tmp_path / "store", flips=True)
    for (plain, flipped), _ in toy.chunks(tmp_path / "store"):
        # Pooling commutes with the mirror, up to the last bit of a sum.
        np.testing.assert_allclose(flipped.astype(float), plain[..., ::-1].astype(float), atol=1e-3)


def test_unreadable_images_are_listed_or_an_error_under_strict(
    tmp_path: Path, toy: SimpleNamespace
) -> None:
    source = toy.Source(40, broken=(5, 11))
    manifest = toy.encode(tmp_path / "store", source)
    assert manifest.samples == 38
    found = {(image.index, image.key, image.reason) for image in manifest.unreadable}
    assert found == {(i, source.key(i), "the file is empty") for i in (5, 11)}
    with pytest.raises(JobError, match=r"class-[45]/000(05|11)\.png .*the file is empty"):
        toy.encode(tmp_path / "strict", source, strict=True)


def test_no_readable_image_is_an_error(tmp_path: Path, toy: SimpleNamespace) -> None:
    with pytest.raises(JobError, match=r"None of the 3 images of toy .*class-[012]/0000[012]\.png"):
        toy.encode(tmp_path / "store", toy.Source(3, broken=(0, 1, 2)))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 1}, "seed"),
        ({"flips": True}, "latents.views"),
        ({"chunk_samples": 4}, "chunk_samples"),
        ({"dtype": "float32"}, "latents.dtype"),
    ],
)
def test_another_plan_is_refused(
    tmp_path: Path, toy: SimpleNamespace, change: dict, named: str
) -> None:
    toy.encode(tmp_path / "store")
    with pytest.raises(UserError, match=rf"store has another plan \({named} is .* now .*\);"):
        toy.encode(tmp_path / "store", **change)


def test_another_autoencoder_is_refused_with_both_fingerprints(
    tmp_path: Path, toy: SimpleNamespace
) -> None:
    toy.encode(tmp_path / "store")
    other = toy.Autoencoder(fingerprint="sha256:" + "b" * 64)
    with pytest.raises(UserError) as caught:
        toy.encode(tmp_path / "store", autoencoder=other)
    assert "a" * 64 in str(caught.value)
    assert "b" * 64 in str(caught.value)


def test_another_source_is_refused_and_a_moved_one_is_not(
    tmp_path: Path, toy: SimpleNamespace
) -> None:
    toy.encode(tmp_path / "store", toy.Source(40))
    assert toy.encode(tmp_path / "store", toy.Source(40, name="elsewhere")).samples == 40
    with pytest.raises(UserError, match=r"source\.count is 40 there and now 41"):
        toy.encode(tmp_path / "store", toy.Source(41))


def test_a_folder_with_other_files_is_refused(tmp_path: Path, toy: SimpleNamespace) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match=r"thesis\.txt"):
        toy.encode(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_the_image_of_overflowing_latents_is_named(tmp_path: Path, toy: SimpleNamespace) -> None:
    class Loud(toy.Autoencoder):
        def encode(self, pixels: torch.Tensor) -> torch.Tensor:
            return super().encode(pixels) * 1e6

    with pytest.raises(JobError, match=r"class-\d/\d+\.png .*float16.*float32"):
        toy.encode(tmp_path / "half", autoencoder=Loud())
    assert toy.encode(tmp_path / "single", autoencoder=Loud(), dtype="float32").samples == 200


def test_an_autoencoder_with_bad_reconstructions_is_refused(
    tmp_path: Path, toy: SimpleNamespace
) -> None:
    class WrongRange(toy.Autoencoder):
        def decode(self, latents: torch.Tensor) -> torch.Tensor:
            return super().decode(latents / 4)

    assert toy.encode(tmp_path / "good", toy.Source(8), check=True).samples == 8
    with pytest.raises(UserError, match=r"toy/pooling .*PSNR.* latent scale"):
        toy.encode(tmp_path / "bad", toy.Source(8), check=True, autoencoder=WrongRange())


@pytest.mark.parametrize("chunk_samples", [1, 8])
def test_plain_webdataset_reads_the_shards(
    tmp_path: Path, toy: SimpleNamespace, chunk_samples: int
) -> None:
    import webdataset

    toy.encode(tmp_path / "store", toy.Source(40), chunk_samples=chunk_samples)
    urls = str(tmp_path / "store" / "latents-{000000..000001}.tar")
    rows, keys = [], []
    for sample in webdataset.WebDataset(urls, shardshuffle=False).decode():
        info, values = sample["json"], sample["latents.npy"]
        rows.append(values[None] if chunk_samples == 1 else values)
        keys += [info["key"]] if chunk_samples == 1 else info["keys"]
    store = LatentStore(tmp_path / "store")
    np.testing.assert_array_equal(np.concatenate(rows), store.raw(0, 40).numpy())
    assert keys == [store.key(index) for index in range(40)]
    assert rows[0].shape[1:] == (3, 4, 4)


def test_shards_hold_plain_files_without_time_and_owner(
    tmp_path: Path, toy: SimpleNamespace
) -> None:
    toy.encode(tmp_path / "store", moments=True, flips=True)
    with tarfile.open(tmp_path / "store" / "latents-000001.tar") as tar:
        members = tar.getmembers()
    assert [member.name for member in members[:3]] == [
        "000000032.moments.npy",
        "000000032.flipped.moments.npy",
        "000000032.json",
    ]
    assert {(m.mtime, m.uid, m.gid, m.uname, m.mode) for m in members} == {(0, 0, 0, "", 0o644)}


def test_the_manifest_is_plain_json_without_a_time(tmp_path: Path, toy: SimpleNamespace) -> None:
    toy.encode(tmp_path / "store")
    content = json.loads((tmp_path / "store" / "manifest.json").read_text())
    assert content["version"] == 1
    assert content["samples"] == sum(shard["samples"] for shard in content["shards"]) == 200
    assert not [name for name in content if "time" in name or "date" in name]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"rank": 2, "world_size": 2}, "rank is 2; give 0 to 1"),
        ({"batch_size": 0}, "batch_size is 0; give 1"),
        ({"chunk_samples": 0, "shard_samples": 0}, "settings of the store"),
    ],
)
def test_wrong_arguments_are_refused_by_name(
    tmp_path: Path, toy: SimpleNamespace, options: dict, named: str
) -> None:
    with pytest.raises(UserError, match=named):
        toy.encode(tmp_path / "store", **options)
    assert not (tmp_path / "store").exists()
