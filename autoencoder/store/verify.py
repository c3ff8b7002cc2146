"""Verification of a store: every count, size, hash, header, value and statistic, and repair."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from autoencoder.store.chunks import ChunkReader
from autoencoder.store.layout import DamagedChunkError
from autoencoder.store.locations import LocalShards, RemoteShards, open_location
from autoencoder.store.manifest import MANIFEST_NAME, SHARD_NAME, Manifest
from autoencoder.store.repair import rebuild_manifest, refuse_remote, repair_shards
from autoencoder.store.statistics import ChannelStatistics
from latentddm.engine.atomic_io import sha256_of, size_problem
from latentddm.engine.errors import JobError, UserError

if TYPE_CHECKING:
    from autoencoder.images import ImageSource
    from autoencoder.models import Autoencoder

_REPAIR = "repair it with the source and the autoencoder, or restore it from a copy"
_ANEW = "encode the store anew"
_NAMED = 3  # damaged chunks of a shard in a message


@dataclass(frozen=True)
class Problem:
    """One defect: the file, the reason, and the remedy."""

    file: str
    reason: str
    advice: str

    def __str__(self) -> str:
        return f"{self.file}: {self.reason}; {self.advice}."


@dataclass
class StoreReport:
    """Result of a verification. shards, samples: intact ones. repaired: names of files."""

    shards: int = 0
    samples: int = 0
    problems: list[Problem] = field(default_factory=list)
    repaired: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.problems


def verify_store(
    location: str | Path,
    *,
    source: ImageSource | None = None,
    autoencoder: Autoencoder | None = None,
    workers: int | None = None,
    cache: str | Path | None = None,
) -> StoreReport:
    """Check a store completely; with `source` and `autoencoder`, repair damaged files.

    A repaired shard is equal, byte for byte, to that of the manifest; otherwise the shard stays
    unchanged and is reported. Nothing in a shard is executed. cache: as for LatentStore.

    UserError for no store, one of a newer version, or a source or autoencoder other than its own.
    """
    if (source is None) != (autoencoder is None):
        raise UserError("A repair needs the source and the autoencoder; give both.")
    if source is not None:
        refuse_remote(location)
    repaired: list[str] = []
    try:
        manifest, files = open_location(location, cache)
    except JobError as error:
        if source is None or not rebuild_manifest(Path(location)):
            return StoreReport(problems=[Problem(MANIFEST_NAME, str(error).rstrip("."), _REPAIR)])
        repaired.append(MANIFEST_NAME)
        manifest, files = open_location(location, cache)
    report, damaged = _Verification(manifest, files).run()
    if damaged and source is not None and autoencoder is not None:
        folder = Path(location)
        failed = repair_shards(folder, manifest, damaged, source, autoencoder, workers)
        repaired += [manifest.shards[number].name for number in damaged if number not in failed]
        report, _ = _Verification(manifest, files).run()
        report.problems += [
            Problem(manifest.shards[number].name, reason, _ANEW)
            for number, reason in failed.items()
        ]
    report.repaired = repaired
    return report


class _Verification:
    def __init__(self, manifest: Manifest, files: LocalShards | RemoteShards) -> None:
        self._manifest = manifest
        self._files = files
        self._reader = ChunkReader(manifest, files)
        self._order = manifest.plan.source_order()
        self._unreadable = {image.index for image in manifest.unreadable}
        self._labelled = 0

    def run(self) -> tuple[StoreReport, list[int]]:
        """The report, and the numbers of the damaged shards."""
        report, damaged = StoreReport(), []
        parts: list[ChannelStatistics] = []
        for number, entry in enumerate(self._manifest.shards):
            try:
                parts.append(self._check_shard(number))
            except (DamagedChunkError, JobError) as error:
                damaged.append(number)
                report.problems.append(Problem(entry.name, str(error).rstrip("."), _REPAIR))
            else:
                report.shards += 1
                report.samples += entry.samples
        if not damaged:
            reasons = self._check_totals(parts)
            report.problems += [Problem(MANIFEST_NAME, reason, _ANEW) for reason in reasons]
        report.problems += self._foreign_shards()
        return report, damaged

    def _check_shard(self, number: int) -> ChannelStatistics:
        """The statistics of an intact shard; DamagedChunkError or JobError for a damaged one."""
        entry = self._manifest.shards[number]
        path = self._files.path(number)
        problem = size_problem(path, entry.bytes)
        if problem is not None:
            raise DamagedChunkError(problem)
        found = sha256_of(path)
        if found != entry.sha256:
            raise DamagedChunkError(self._explain(number, path, found))
        table, layout = self._reader.table, self._manifest.plan.layout
        parts: list[ChannelStatistics] = []
        sources: list[int] = []
        for chunk in np.flatnonzero(table.shard == number).tolist():
            shape = (int(table.samples[chunk]), *layout.row_shape)
            views = [np.empty(shape, layout.dtype) for _ in layout.views]
            infos = self._reader.read_checked(path, chunk, views, with_infos=True)
            if not all(np.isfinite(values).all() for values in views):
                raise DamagedChunkError("it holds values that are not finite")
            parts += [ChannelStatistics.of_chunk(values, layout.contents) for values in views]
            sources += [info.source_index for info in infos]
            self._labelled += sum(info.label is not None for info in infos)
        first, step = number * self._manifest.plan.shard_samples, self._manifest.plan.shard_samples
        planned = self._order[first : first + step].tolist()
        if sources != [index for index in planned if index not in self._unreadable]:
            raise DamagedChunkError("its samples are not those of the plan")
        return ChannelStatistics.merged(parts, layout.shape[0])

    def _explain(self, number: int, path: Path, found: str) -> str:
        """The reason for a wrong hash of a shard."""
        for other in self._manifest.shards:
            if other.sha256 == found:
                return f"it holds the contents of {other.name}"
        bad: list[str] = []
        table, layout = self._reader.table, self._manifest.plan.layout
        for chunk in np.flatnonzero(table.shard == number).tolist():
            shape = (int(table.samples[chunk]), *layout.row_shape)
            views = [np.empty(shape, layout.dtype) for _ in layout.views]
            try:
                self._reader.read_checked(path, chunk, views, with_infos=True)
            except DamagedChunkError as error:
                bad.append(f"chunk {int(table.first[chunk]):09d}: {error}")
        more = f" and {len(bad) - _NAMED} chunks more" if len(bad) > _NAMED else ""
        return ", ".join(["its hash does not match the manifest", *bad[:_NAMED]]) + more

    def _check_totals(self, parts: list[ChannelStatistics]) -> list[str]:
        manifest, reasons = self._manifest, []
        statistics = ChannelStatistics.merged(parts, manifest.plan.layout.shape[0])
        # The order of summation differs between builds of numpy, so the last bits may differ.
        for name in ("mean", "std"):
            if not np.allclose(getattr(statistics, name), getattr(manifest, name), 1e-9, 1e-9):
                reasons.append(f"its {name} is not that of the latents")
        if manifest.samples + len(manifest.unreadable) != manifest.plan.source["count"]:
            reasons.append("samples and unreadable images do not add up to the source")
        if self._labelled != manifest.labelled:
            reasons.append("its number of labelled samples is not that of the shards")
        return reasons

    def _foreign_shards(self) -> list[Problem]:
        """Files with the name of a shard that are not in the manifest."""
        if not isinstance(self._files, LocalShards):
            return []
        known = {shard.name for shard in self._manifest.shards}
        names = sorted(path.name for path in self._files.folder.iterdir())
        return [
            Problem(name, "it is not a shard of this store", "remove it")
            for name in names
            if SHARD_NAME.fullmatch(name) and name not in known
        ]
