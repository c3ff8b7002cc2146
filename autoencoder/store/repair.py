"""Repair of damaged parts of a store, byte for byte."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from autoencoder.images import Preprocessing
from autoencoder.store.completion import begun_plan, complete_store
from autoencoder.store.encoding import ShardEncoding, default_workers
from autoencoder.store.manifest import MANIFEST_NAME, Manifest
from autoencoder.store.plan import check_same_plan
from autoencoder.store.shard import ShardBuilder
from autoencoder.store.writer import make_plan
from latentddm.engine.errors import UserError

if TYPE_CHECKING:
    from autoencoder.images import ImageSource
    from autoencoder.models import Autoencoder


def repair_shards(
    folder: Path,
    manifest: Manifest,
    numbers: list[int],
    source: ImageSource,
    autoencoder: Autoencoder,
    workers: int | None = None,
) -> dict[int, str]:
    """Encode the shards `numbers` again, and replace each whose new bytes have the right hash.

    Returns the reasons for all others, which stay unchanged. UserError with the differences for a
    source or an autoencoder other than those of the store.
    """
    plan = manifest.plan
    preprocessing = _preprocessing(manifest)
    wanted = make_plan(
        source,
        autoencoder,
        preprocessing,
        moments=plan.layout.contents == "moments",
        flips=len(plan.layout.views) > 1,
        dtype=plan.layout.dtype,
        chunk_samples=plan.layout.chunk_samples,
        shard_samples=plan.shard_samples,
        seed=plan.seed,
    )
    check_same_plan(plan.to_json(), wanted.to_json(), str(folder))
    failed: dict[int, str] = {}

    def finish(shard: ShardBuilder) -> None:
        record = shard.record()
        if record.entry == manifest.shards[shard.number]:
            shard.write(folder)
        else:
            failed[shard.number] = (
                "a new encoding gives other bytes (another device, or other versions than "
                f"{manifest.software})"
            )

    for number in numbers:
        batch_size = manifest.shards[number].batch_size
        encoding = ShardEncoding(source, autoencoder, preprocessing, plan, batch_size)
        encoding.run([number], finish, default_workers() if workers is None else workers)
    return failed


def rebuild_manifest(folder: Path) -> bool:
    """Whether a damaged manifest could be written again from the records of the encoding."""
    plan = begun_plan(folder)
    return plan is not None and complete_store(folder, plan) is not None


def _preprocessing(manifest: Manifest) -> Preprocessing:
    described = manifest.plan.preprocessing
    try:
        preprocessing = Preprocessing(size=described["size"], crop=described["crop"])
    except KeyError as error:
        raise UserError(
            f"{MANIFEST_NAME} has no {error.args[0]} in its preprocessing; encode the store anew."
        ) from None
    return preprocessing
