"""Import of existing latents in webdataset shards as a store, without encoding."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from autoencoder.remote import local_output
from autoencoder.sources.naming import is_hidden, key_of
from autoencoder.sources.tar_members import Member, read_members, read_range
from autoencoder.sources.tar_shards import expand_pattern
from autoencoder.store.completion import complete_store, finished_manifest, prepare_folder
from autoencoder.store.layout import ChunkFormat, SampleInfo
from autoencoder.store.manifest import Manifest
from autoencoder.store.plan import EncodePlan, hash_keys
from autoencoder.store.shard import ShardBuilder, read_record, shard_name
from autoencoder.store.writer import CHUNK_SAMPLES
from latentddm.engine.atomic_io import remove_leftovers
from latentddm.engine.errors import JobError, UserError
from latentddm.engine.progress import Progress

if TYPE_CHECKING:
    from autoencoder.models import Autoencoder

SHARD_SAMPLES = 4096
CHECKED = 8  # latents that are decoded and encoded again
LARGEST_ERROR = 0.7  # of these, relative to their spread; above 1 with another autoencoder


class _Sample(NamedTuple):
    key: str
    shard: Path
    latent: Member
    label: Member | None


def import_latents(
    shards: str,
    autoencoder: Autoencoder,
    output: Path | str,
    *,
    scale_factor: float = 1.0,
    dtype: str = "float16",
    chunk_samples: int = CHUNK_SAMPLES,
    shard_samples: int = SHARD_SAMPLES,
    seed: int | None = 0,
    check: bool = True,
    show_progress: bool = True,
) -> Manifest:
    """Write the latents of webdataset shards into the store `output`; call again to resume.

    shards: a tar, a folder of tars or a pattern; per sample one member ending in `npy`, the latent
    [C, h, w], and optionally a label in `cls`. autoencoder: that of the latents. scale_factor: the
    factor in these latents, divided out again. check: decode and encode a few latents, with
    UserError if they do not return. UserError that names the first unfitting sample.
    """
    if not scale_factor > 0:
        raise UserError(f"scale_factor is {scale_factor}; give a factor above 0.")
    folder = local_output(output)
    samples = _list_samples(shards)
    shape = _read(samples[0], None, scale_factor).shape
    if shape[0] != autoencoder.latent_channels:
        raise UserError(
            f"The latent {samples[0].key} has {shape[0]} channels, but the autoencoder "
            f"{autoencoder.reference} has {autoencoder.latent_channels}; give the autoencoder of "
            "the latents."
        )
    if check:
        _check(np.stack([_read(s, shape, scale_factor) for s in samples[:CHECKED]]), autoencoder)
    plan = EncodePlan(
        autoencoder={
            "reference": autoencoder.reference,
            "fingerprint": autoencoder.fingerprint,
            "precision": "imported",
        },
        preprocessing={"size": shape[1] * autoencoder.factor, "scale_factor": scale_factor},
        source={
            "name": key_of(shards),
            "count": len(samples),
            "keys": hash_keys(sample.key for sample in samples),
        },
        layout=ChunkFormat(
            shape=shape,
            dtype=dtype,
            contents="samples",
            views=("plain",),
            chunk_samples=min(chunk_samples, shard_samples),
        ),
        shard_samples=shard_samples,
        seed=seed,
    )
    manifest = finished_manifest(folder, plan)
    if manifest is None:
        _write(folder, plan, samples, scale_factor, show_progress)
        manifest = complete_store(folder, plan)
    assert manifest is not None  # all shards are written by this process
    return manifest


def _write(
    folder: Path,
    plan: EncodePlan,
    samples: list[_Sample],
    scale_factor: float,
    show_progress: bool,
) -> None:
    """Write the missing shards."""
    plan = prepare_folder(folder, plan)
    numbers = range(plan.shards)
    remove_leftovers(folder, [shard_name(number) for number in numbers])
    order = plan.source_order()
    with Progress(len(samples), "import", unit="latents", show=show_progress) as progress:
        for number in numbers:
            first = number * plan.shard_samples
            indices = order[first : first + plan.shard_samples].tolist()
            if read_record(folder, number) is None:
                builder = ShardBuilder(number, first, 1, plan.layout)
                for index in indices:
                    row = _row(samples[index], plan.layout, scale_factor)
                    info = SampleInfo(samples[index].key, _label(samples[index]), index)
                    builder.add([row[None]], [info])
                builder.write(folder)
            progress.update(len(indices))


def _list_samples(reference: str) -> list[_Sample]:
    """The samples of all shards in order; UserError without any."""
    path = Path(reference).expanduser()
    if path.is_dir():
        shards = sorted(path.glob("*.tar"))
    else:
        shards = expand_pattern(str(path)) or [path]
    samples = [sample for shard in shards for sample in _shard_samples(shard)]
    if not samples:
        raise UserError(
            f"{reference} holds no latents; give tar shards with one npy member per sample."
        )
    keys = {sample.key for sample in samples}
    if len(keys) < len(samples):
        samples = [s._replace(key=f"{key_of(s.shard.name)}/{s.key}") for s in samples]
    return samples


def _shard_samples(shard: Path) -> list[_Sample]:
    labels: dict[str, Member] = {}
    latents: dict[str, Member] = {}
    for member in read_members(shard):
        folder, slash, base = member.name.removeprefix("./").rpartition("/")
        stem, _, extension = base.partition(".")
        if is_hidden(member.name):
            continue
        if extension == "cls":
            labels[folder + slash + stem] = member
        elif extension.rpartition(".")[2] == "npy":
            if folder + slash + stem in latents:
                raise UserError(f"{shard} holds two npy members in {stem}; write one per sample.")
            latents[folder + slash + stem] = member
    return [
        _Sample(key_of(name), shard, member, labels.get(name)) for name, member in latents.items()
    ]


def _read(sample: _Sample, shape: tuple[int, ...] | None, scale_factor: float) -> np.ndarray:
    """The raw latent of a sample, float32 [C, h, w]; UserError for anything else."""
    data = read_range(sample.shard, sample.latent.offset, sample.latent.size)
    where = f"{sample.latent.name} in {sample.shard}"
    try:
        values = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise UserError(
            f"{where} is not a plain array ({error}); write it with numpy.save."
        ) from None
    if values.ndim != 3 or not np.issubdtype(values.dtype, np.floating):
        found = f"{values.dtype} {list(values.shape)}"
        raise UserError(f"{where} is {found}; give floating-point latents [C, h, w].")
    if shape is not None and values.shape != shape:
        raise UserError(
            f"{where} has the shape {list(values.shape)}, the first sample {list(shape)}; give "
            "latents of one shape."
        )
    if not np.isfinite(values).all():
        raise UserError(f"{where} holds NaN or infinite values; make it again.")
    return values.astype(np.float32) / scale_factor


def _row(sample: _Sample, layout: ChunkFormat, scale_factor: float) -> np.ndarray:
    row = _read(sample, layout.shape, scale_factor).astype(layout.dtype)
    if not np.isfinite(row).all():
        raise UserError(
            f"The latent {sample.key} exceeds the range of {layout.dtype}; store float32."
        )
    return row


def _label(sample: _Sample) -> int | None:
    if sample.label is None:
        return None
    try:
        return int(read_range(sample.shard, sample.label.offset, sample.label.size))
    except ValueError:
        raise JobError(
            f"{sample.label.name} in {sample.shard} is not an integer; write the shard again."
        ) from None


def _check(latents: np.ndarray, autoencoder: Autoencoder) -> None:
    """UserError if decoded and encoded again, latents differ by more than LARGEST_ERROR."""
    raw = torch.from_numpy(latents)
    back = autoencoder.encode(autoencoder.decode(raw)).cpu()
    spread = (raw - raw.mean(dim=(0, 2, 3), keepdim=True)).norm()
    error = float((back - raw).norm() / spread.clamp_min(1e-6))
    if error > LARGEST_ERROR:
        raise UserError(
            f"Decoded and encoded again, the latents have a relative error of {error:.2f}: they "
            f"are scaled, or not those of {autoencoder.reference}; give --scale-factor or another "
            "autoencoder, or leave the check out with --no-check."
        )
