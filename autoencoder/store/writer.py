"""Encoding of an image source into a store: resumable, with the same bytes for any division."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from autoencoder.remote import local_output
from autoencoder.sources.protocol import is_sequential, left_out
from autoencoder.store.completion import (
    complete_store,
    finished_manifest,
    found_plan,
    prepare_folder,
)
from autoencoder.store.encoding import ShardEncoding, default_workers
from autoencoder.store.layout import CONTENTS, VIEWS, ChunkFormat
from autoencoder.store.manifest import MANIFEST_NAME, Manifest, Unreadable
from autoencoder.store.plan import EncodePlan, hash_keys
from autoencoder.store.shard import RECORDS, read_record, shard_name
from latentddm.engine.atomic_io import remove_leftovers
from latentddm.engine.errors import UserError
from latentddm.engine.progress import Progress

if TYPE_CHECKING:
    from autoencoder.images import ImageSource, Preprocessing
    from autoencoder.models import Autoencoder

CHUNK_SAMPLES = 256
_SHARDS_WANTED = 64
_LARGEST_SHARD = 4096


def encode_store(
    source: ImageSource,
    autoencoder: Autoencoder,
    output: Path | str,
    *,
    preprocessing: Preprocessing,
    batch_size: int = 64,
    workers: int | None = None,
    moments: bool = False,
    flips: bool = False,
    dtype: str = "float16",
    chunk_samples: int = CHUNK_SAMPLES,
    shard_samples: int | None = None,
    seed: int | None = 0,
    strict: bool = False,
    rank: int = 0,
    world_size: int = 1,
    check: bool = True,
    show_progress: bool = True,
) -> Manifest | None:
    """Encode all images of `source` into the store `output`; call again to resume.

    A process encodes the shards with number % world_size == rank. The last one to finish writes and
    returns the manifest; all others return None. The bytes of the store depend on the plan and on
    `batch_size` only.

    moments: store mean and log variance of the posterior. flips: store mirrored views too.
    shard_samples: by default for about 64 shards of 256 to 4,096 samples. seed: of the shuffle;
    None, and for a sequential source always: the order of the source. workers: image decoding
    processes; 0: this one; by default one for a sequential source. strict: stop at
    the first unreadable image. check: reconstruct the first images, with UserError for a bad
    reconstruction.

    UserError for other files or another plan in the folder, a wrong value, or, under `strict`,
    images left out by an earlier call. JobError for an unreadable image under `strict`, latents
    that are not finite, or a full disk.
    """
    if not 0 <= rank < world_size:
        raise UserError(f"rank is {rank}; give 0 to {world_size - 1}, below world_size.")
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; give 1 or more.")
    folder = local_output(output)
    sequential = is_sequential(source)
    plan = make_plan(
        source,
        autoencoder,
        preprocessing,
        moments=moments,
        flips=flips,
        dtype=dtype,
        chunk_samples=chunk_samples,
        shard_samples=shard_samples,
        seed=None if sequential else seed,
    )
    if workers is None:
        workers = 1 if sequential else default_workers()
    manifest = finished_manifest(folder, plan)
    if manifest is not None:
        if strict:
            _refuse_unreadable(manifest.unreadable, folder / MANIFEST_NAME)
        return manifest
    encoding = ShardEncoding(source, autoencoder, preprocessing, plan, batch_size, strict)
    if found_plan(folder, plan) is None and (check or moments):
        encoding.check_autoencoder(reconstruction=check)
    plan = prepare_folder(folder, plan)  # from here on, another plan is refused
    numbers = range(rank, plan.shards, world_size)
    _encode_missing(encoding, folder, numbers, workers, show_progress)
    return complete_store(folder, plan)


def _encode_missing(
    encoding: ShardEncoding, folder: Path, numbers: range, workers: int, show_progress: bool
) -> None:
    """Write those of the shards `numbers` that are not finished."""
    records = {number: read_record(folder, number) for number in numbers}
    finished = {number: record for number, record in records.items() if record is not None}
    pending = [number for number in numbers if number not in finished]
    if encoding.strict:
        skipped = [image for record in finished.values() for image in record.unreadable]
        _refuse_unreadable(skipped, folder / RECORDS)
    remove_leftovers(folder, [shard_name(number) for number in numbers])
    if not pending:
        return
    done, total = (
        sum(len(encoding.indices(number)) for number in part) for part in (finished, numbers)
    )
    with Progress(total, "encode", done=done, show=show_progress) as progress:
        encoding.run(pending, lambda shard: shard.write(folder), workers, progress)


def _refuse_unreadable(images: Sequence[Unreadable], where: Path) -> None:
    """UserError if an encoding without `strict` left images out; where: the list of them."""
    if images:
        raise UserError(
            f"{where.parent} was encoded without --strict, and {where} lists {len(images)} "
            f"unreadable (the first, {images[0].key}: {images[0].reason}); repair or remove them "
            "and encode into another folder, or leave out --strict."
        )


def make_plan(
    source: ImageSource,
    autoencoder: Autoencoder,
    preprocessing: Preprocessing,
    *,
    moments: bool = False,
    flips: bool = False,
    dtype: str = "float16",
    chunk_samples: int = CHUNK_SAMPLES,
    shard_samples: int | None = None,
    seed: int | None = 0,
) -> EncodePlan:
    """The plan of a store; UserError for an empty source or an unfitting size."""
    from autoencoder.models import latent_edge  # here, as it takes a second

    count = len(source)
    if count == 0:
        raise UserError(f"{source.name} holds no images; check the path.")
    edge = latent_edge(autoencoder, preprocessing.size)
    if shard_samples is None:
        wanted = -(-count // _SHARDS_WANTED)
        chunks = -(-wanted // chunk_samples)
        shard_samples = min(_LARGEST_SHARD, max(1, chunks) * chunk_samples)
    skipped = left_out(source)
    plan = EncodePlan(
        autoencoder={
            "reference": autoencoder.reference,
            "fingerprint": autoencoder.fingerprint,
            "precision": str(autoencoder.dtype).removeprefix("torch."),
        },
        preprocessing=preprocessing.describe(),
        source={
            "name": source.name,
            "count": count,
            "keys": hash_keys(source.key(index) for index in range(count)),
            **({"left_out": [vars(kind) for kind in skipped]} if skipped else {}),
        },
        layout=ChunkFormat(
            shape=(autoencoder.latent_channels, edge, edge),
            dtype=dtype,
            contents=list(CONTENTS)[moments],
            views=VIEWS[: 1 + flips],
            chunk_samples=min(chunk_samples, shard_samples),
        ),
        shard_samples=shard_samples,
        seed=seed,
    )
    try:
        plan.validate()
    except ValueError as error:
        raise UserError(f"The settings of the store are invalid: {error}; change them.") from None
    return plan
