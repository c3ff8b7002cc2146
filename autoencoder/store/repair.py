"""Repair of damaged parts of a store, byte for byte."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from autoencoder.images import Preprocessing
from autoencoder.remote import is_remote
from autoencoder.sources.naming import public_name
from autoencoder.store.completion import begun_plan, complete_store, plan_of_store
from autoencoder.store.encoding import ShardEncoding, default_workers
from autoencoder.store.manifest import MANIFEST_NAME, Manifest
from autoencoder.store.plan import EncodePlan, check_same_plan
from autoencoder.store.shard import ShardBuilder
from autoencoder.store.writer import make_plan
from latentddm.engine.errors import UserError

if TYPE_CHECKING:
    from autoencoder.images import ImageSource
    from autoencoder.models import Autoencoder


_PRECISIONS = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float32, torch.bfloat16, torch.float16)
}


@dataclass(frozen=True)
class RepairPlan:
    """What a repair takes to encode as before.

    reference, dtype: of the autoencoder. count: of the images of the source.
    """

    reference: str
    dtype: torch.dtype
    preprocessing: Preprocessing
    count: int


def plan_repair(location: str | Path) -> RepairPlan:
    """The inputs of a repair of the store at `location`, whose manifest may be damaged.

    UserError for a store that no encoding repairs: a remote, an unfinished or an imported one.
    """
    refuse_remote(location)
    plan = plan_of_store(Path(location))
    precision = plan.autoencoder["precision"]
    if precision not in _PRECISIONS:
        raise UserError(
            f"The latents of {location} are {precision}, not encoded; delete the damaged shards "
            "and run the same import-latents again."
        )
    return RepairPlan(
        reference=plan.autoencoder["reference"],
        dtype=_PRECISIONS[precision],
        preprocessing=_preprocessing(plan),
        count=plan.source["count"],
    )


def refuse_remote(location: str | Path) -> None:
    """UserError for a URL, where nothing can be repaired."""
    if is_remote(location):
        raise UserError(
            f"{public_name(str(location))} is remote and cannot be repaired; repair a local copy "
            "and upload it."
        )


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
    preprocessing = _preprocessing(plan)
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


def _preprocessing(plan: EncodePlan) -> Preprocessing:
    described = plan.preprocessing
    try:
        preprocessing = Preprocessing(size=described["size"], crop=described["crop"])
    except KeyError as error:
        raise UserError(
            f"{MANIFEST_NAME} has no {error.args[0]} in its preprocessing; encode the store anew."
        ) from None
    return preprocessing
