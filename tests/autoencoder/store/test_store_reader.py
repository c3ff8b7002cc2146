"""Reading of a store: the order as a function of seed and position, and the values of batches."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from autoencoder.store import LatentBatch, LatentStore
from latentddm.engine.errors import UserError


@pytest.fixture
def ordered(tmp_path: Path, toy: SimpleNamespace) -> Path:
    """203 samples, one unreadable, in many small chunks of unequal size."""
    toy.encode(tmp_path / "store", toy.Source(203, broken=(40,)), chunk_samples=5, shard_samples=24)
    return tmp_path / "store"


def equal(a: LatentBatch, b: LatentBatch) -> bool:
    return (
        torch.equal(a.latents, b.latents)
        and torch.equal(a.raw, b.raw)
        and torch.equal(a.indices, b.indices)
        and (a.labels is None) == (b.labels is None)
        and (a.labels is None or b.labels is None or torch.equal(a.labels, b.labels))
    )


def joined(batches: list[LatentBatch]) -> LatentBatch:
    labels = [batch.labels for batch in batches if batch.labels is not None]
    return LatentBatch(
        torch.cat([batch.raw for batch in batches]),
        torch.cat(labels) if labels else None,
        torch.cat([batch.indices for batch in batches]),
        batches[0].conversion,
    )


def test_every_epoch_holds_every_sample_once(ordered: Path) -> None:
    store = LatentStore(ordered)
    assert len(store) == 202
    indices = joined(list(islice(store.stream(7, window_samples=32), 100))).indices
    for epoch in range(3):
        part = indices[epoch * 202 : (epoch + 1) * 202]
        assert sorted(part.tolist()) == list(range(202))


def test_batches_hold_the_stored_latents_in_model_space(
    ordered: Path, toy: SimpleNamespace
) -> None:
    store = LatentStore(ordered)
    stored = torch.cat([torch.from_numpy(views[0]) for views, _ in toy.chunks(ordered)])
    batch = next(store.stream(64, seed=3))
    assert batch.latents.dtype == torch.float32
    assert torch.equal(batch.latents, store.standardise(stored[batch.indices]))
    assert batch.labels is not None
    for index, label in zip(batch.indices.tolist(), batch.labels.tolist(), strict=True):
        assert store.info(index).label == label
        assert store.key(index).startswith(f"class-{label}/")


def test_an_epoch_has_mean_zero_and_deviation_one(ordered: Path) -> None:
    store = LatentStore(ordered)
    latents = next(store.stream(len(store))).latents
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        latents.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-5, rtol=0
    )


def test_the_conversion_has_an_inverse(ordered: Path) -> None:
    store = LatentStore(ordered)
    raw = torch.randn(2, *store.shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(store.restore(store.standardise(raw)), raw)


@pytest.mark.parametrize("memory", [0, None])
@pytest.mark.parametrize("options", [{}, {"moments": True, "flips": True}])
def test_seeking_is_bit_equal_to_reading(
    tmp_path: Path, toy: SimpleNamespace, memory: int | None, options: dict
) -> None:
    toy.encode(tmp_path / "store", toy.Source(101), chunk_samples=5, shard_samples=24, **options)
    store = LatentStore(tmp_path / "store", memory=memory)
    everything = joined(list(islice(store.stream(1, seed=7, window_samples=24), 420)))
    draw = np.random.default_rng(0)
    for _ in range(50):
        start, size = int(draw.integers(300)), int(draw.integers(1, 20))
        for world in (1, 2, 3):
            streams = [
                store.stream(size, 7, start, rank, world, window_samples=24)
                for rank in range(world)
            ]
            batches = joined([next(stream) for stream in streams])
            end = start + size * world
            expected = LatentBatch(
                everything.raw[start:end],
                everything.labels[start:end] if everything.labels is not None else None,
                everything.indices[start:end],
                store.conversion,
            )
            assert equal(batches, expected)


def test_several_ranks_together_read_the_batches_of_one(ordered: Path) -> None:
    store = LatentStore(ordered)
    alone = list(islice(store.stream(12, seed=1, start=36), 40))
    for world in (2, 3):
        streams = [store.stream(12 // world, 1, 36, rank, world) for rank in range(world)]
        for expected in alone:
            assert equal(joined([next(stream) for stream in streams]), expected)


def test_batches_are_independent_of_the_memory_budget(ordered: Path) -> None:
    expected = list(islice(LatentStore(ordered, memory=0).stream(16, window_samples=40), 40))
    found = islice(LatentStore(ordered, memory=None).stream(16, window_samples=40), 40)
    assert all(equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_batch_travels_as_stored_and_is_converted_where_it_arrives(ordered: Path) -> None:
    """float16 on its way to a GPU; on the CPU there is no way, and every bit is as it was."""
    batch = next(LatentStore(ordered).stream(16))
    away = batch.to("meta")
    assert away.raw.dtype == torch.float16
    assert (away.latents.dtype, away.latents.device.type) == (torch.float32, "meta")
    assert equal(batch.to("cpu"), batch)


@pytest.mark.parametrize("moments", [False, True])
def test_pinned_batches_are_drawn_into_page_locked_memory(
    tmp_path: Path, toy: SimpleNamespace, moments: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stand-in for page-locked memory, of which a machine without a GPU has none."""
    toy.encode(tmp_path / "store", toy.Source(20), moments=moments)
    store = LatentStore(tmp_path / "store")
    expected, locked, empty = next(store.stream(8)), [], torch.empty

    def made(*arguments: Any, pin_memory: bool = False, **options: Any) -> torch.Tensor:
        tensor = empty(*arguments, **options)
        if pin_memory:
            locked.append(tensor)
        return tensor

    def lock(tensor: torch.Tensor) -> torch.Tensor:
        locked.append(tensor)
        return tensor

    monkeypatch.setattr(torch, "empty", made)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lock)
    assert equal(next(store.stream(8)), expected)
    assert not locked
    batch = next(store.stream(8, pinned=True))
    assert equal(batch, expected)
    assert locked[-1] is batch.raw


def test_seeds_and_epochs_differ(tmp_path: Path, toy: SimpleNamespace) -> None:
    toy.encode(tmp_path / "store", toy.Source(1000), shard_samples=128)
    store = LatentStore(tmp_path / "store")
    size = len(store)
    first, second = (batch.indices for batch in islice(store.stream(size), 2))
    other = next(store.stream(size, seed=1)).indices
    assert (first == second).float().mean() < 0.01
    assert (first == other).float().mean() < 0.01


def test_samples_stored_in_order_are_mixed_globally(tmp_path: Path, toy: SimpleNamespace) -> None:
    toy.encode(
        tmp_path / "store",
        toy.Source(10_000, labelled=False),
        seed=None,
        chunk_samples=256,
        shard_samples=1250,
        batch_size=250,
    )
    store = LatentStore(tmp_path / "store")
    assert len(store.manifest.shards) == 8
    for window in (None, 512):
        stream = store.stream(10_000, window_samples=window)
        first, second = (batch.indices.numpy() for batch in islice(stream, 2))
        for order in (first, second):
            assert np.abs(order - np.arange(10_000)).mean() >= 0.25 * 10_000
        assert (first != second).mean() > 0.99


def test_half_of_the_samples_are_mirrored(tmp_path: Path, toy: SimpleNamespace) -> None:
    toy.encode(tmp_path / "store", toy.Source(60), flips=True)
    store = LatentStore(tmp_path / "store")
    chunks = [views for views, _ in toy.chunks(tmp_path / "store")]
    plain, mirrored = (torch.cat([torch.from_numpy(c[view]) for c in chunks]) for view in (0, 1))
    batch = next(store.stream(600))
    is_plain, is_mirrored = (
        (batch.raw == stored[batch.indices]).flatten(1).all(1) for stored in (plain, mirrored)
    )
    assert (is_plain ^ is_mirrored).all()
    assert 0.4 < is_plain.float().mean() < 0.6


def test_draws_from_moments_have_their_mean_and_variance(
    tmp_path: Path, toy: SimpleNamespace
) -> None:
    toy.encode(tmp_path / "store", toy.Source(60), moments=True)
    store = LatentStore(tmp_path / "store")
    batch = next(store.stream(60 * 64))
    assert batch.latents.shape[1:] == store.shape == (3, 4, 4)
    (moments,), _ = toy.chunks(tmp_path / "store")[0]
    mean, log_variance = moments[3, :3].astype(np.float64), moments[3, 3:].astype(np.float64)
    draws = store.restore(batch.latents[batch.indices == 3]).double().numpy()
    assert len(draws) == 64
    error = (draws.mean(0) - mean) / np.exp(0.5 * log_variance)
    assert np.abs(error).max() < 5 / np.sqrt(64)
    ratio = draws.var(0) / np.exp(log_variance)
    assert 0.7 < ratio.mean() < 1.3


def test_a_store_without_labels_has_batches_without_labels(
    tmp_path: Path, toy: SimpleNamespace
) -> None:
    toy.encode(tmp_path / "store", toy.Source(20, labelled=False))
    assert next(LatentStore(tmp_path / "store").stream(4)).labels is None


def test_a_batch_may_be_larger_than_the_store(tmp_path: Path, toy: SimpleNamespace) -> None:
    toy.encode(tmp_path / "store", toy.Source(10))
    indices = next(LatentStore(tmp_path / "store").stream(25)).indices
    assert sorted(indices[:20].tolist()) == sorted([*range(10), *range(10)])


@pytest.mark.parametrize(
    ("name", "value"), [("batch_size", 0), ("start", -1), ("rank", 1), ("window_samples", 0)]
)
def test_wrong_arguments_are_refused_by_name(ordered: Path, name: str, value: int) -> None:
    with pytest.raises(UserError, match=f"{name} is {value};"):
        LatentStore(ordered).stream(**{"batch_size": 4, name: value})


def test_other_folders_than_stores_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{tmp_path.name} holds no latent store"):
        LatentStore(tmp_path)
    (tmp_path / "encoding").mkdir()
    with pytest.raises(UserError, match="not finished"):
        LatentStore(tmp_path)
