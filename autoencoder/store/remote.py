"""A store behind a URL: its files are fetched, checked, and kept in a local cache."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from autoencoder.remote import FailedTransferError, RemoteFolder, cache_lock, default_cache
from autoencoder.store.manifest import MANIFEST_NAME, Manifest
from latentddm.engine.atomic_io import sha256_of, size_problem
from latentddm.engine.errors import JobError

_DOWNLOADS_AT_ONCE = 4


def fetch_manifest(folder: RemoteFolder) -> Manifest:
    """Fetch and check the manifest of the store in `folder`."""

    def check(data: bytes) -> Manifest:
        try:
            return Manifest.from_bytes(data, f"{folder.name}/{MANIFEST_NAME}")
        except JobError as error:
            raise FailedTransferError(str(error)) from None

    return folder.read(MANIFEST_NAME, check)


class RemoteShards:
    """The shards of a remote store, each fetched into the cache when it is first needed."""

    def __init__(self, folder: RemoteFolder, manifest: Manifest, cache: str | Path | None) -> None:
        self._folder = folder
        self._shards = manifest.shards
        self._cache = Path(cache) if cache is not None else default_cache() / "shards"
        self._present: set[int] = set()
        self.advice = "delete this file of the cache and run again"

    def path(self, shard: int) -> Path:
        """The cached file; it is named by its hash, so a cache may serve any number of stores."""
        entry = self._shards[shard]
        path = self._cache / f"{entry.sha256}.tar"
        if shard not in self._present:
            # One download serves all processes of a machine.
            with cache_lock(path):
                if size_problem(path, entry.bytes) is not None:
                    self._folder.download(
                        entry.name, path, partial(_problem, size=entry.bytes, sha256=entry.sha256)
                    )
            self._present.add(shard)
        return path

    def prepare(self, shards: list[int]) -> None:
        """Fetch several shards at once."""
        missing = [shard for shard in shards if shard not in self._present]
        if missing:
            with ThreadPoolExecutor(_DOWNLOADS_AT_ONCE) as pool:
                list(pool.map(self.path, missing))


def _problem(path: Path, size: int, sha256: str) -> str | None:
    """Why a fetched file is not the one of the manifest; None if it is."""
    problem = size_problem(path, size)
    if problem is None and sha256_of(path) != sha256:
        problem = "does not have the hash of the manifest"
    return problem
