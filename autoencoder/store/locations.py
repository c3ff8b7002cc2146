"""The location of a store: a folder of this machine, or a URL with a local cache of the shards."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from autoencoder.remote import (
    FailedTransferError,
    RemoteFolder,
    cache_lock,
    default_cache,
    is_remote,
)
from autoencoder.store.manifest import MANIFEST_NAME, Manifest
from autoencoder.store.shard import RECORDS
from latentddm.engine.atomic_io import sha256_of, size_problem
from latentddm.engine.errors import JobError, UserError

_DOWNLOADS_AT_ONCE = 4


def open_location(
    location: str | Path, cache: str | Path | None = None
) -> tuple[Manifest, LocalShards | RemoteShards]:
    """The manifest of a store, and access to its shards, none of which is read yet."""
    if is_remote(location):
        remote = RemoteFolder(str(location))
        manifest = fetch_manifest(remote)
        return manifest, RemoteShards(remote, manifest, cache)
    manifest = read_manifest(Path(location))
    return manifest, LocalShards(Path(location), manifest)


def holds_store(folder: Path) -> bool:
    """Whether `folder` holds a store, complete or not."""
    return (folder / MANIFEST_NAME).is_file() or (folder / RECORDS).is_dir()


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the store in `folder`; UserError for an incomplete store, or for none."""
    path = folder / MANIFEST_NAME
    try:
        return Manifest.from_bytes(path.read_bytes(), str(path))
    except FileNotFoundError:
        if (folder / RECORDS).is_dir():
            raise UserError(
                f"{folder} is not finished; run the same encode again to finish it."
            ) from None
        raise UserError(f"{folder} holds no latent store; check the path.") from None
    except OSError as error:
        raise JobError(f"{path} cannot be read ({error.strerror}); check the disk.") from None


def fetch_manifest(folder: RemoteFolder) -> Manifest:
    """The manifest of the store in a remote folder; damaged transfers are retried."""

    def check(data: bytes) -> Manifest:
        try:
            return Manifest.from_bytes(data, f"{folder.name}/{MANIFEST_NAME}")
        except JobError as error:
            raise FailedTransferError(str(error)) from None

    return folder.read(MANIFEST_NAME, check)


class LocalShards:
    """The shards of a store in a folder."""

    advice = "run `latentddm verify` on the store, or restore the shard from a copy"

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self._paths = [folder / shard.name for shard in manifest.shards]
        self._sizes = [shard.bytes for shard in manifest.shards]

    def path(self, shard: int) -> Path:
        return self._paths[shard]

    def prepare(self, shards: list[int]) -> None:
        """No effect: local shards need no transfer."""

    def check_sizes(self) -> None:
        """JobError if a shard is missing or of the wrong size."""
        for path, size in zip(self._paths, self._sizes, strict=True):
            problem = size_problem(path, size)
            if problem:
                raise JobError(f"{path} {problem}; {self.advice}.")


class RemoteShards:
    """The shards of a remote store, each fetched into the cache on first use."""

    advice = "delete this file of the cache and run again"

    def __init__(self, folder: RemoteFolder, manifest: Manifest, cache: str | Path | None) -> None:
        self._folder = folder
        self._shards = manifest.shards
        self._cache = Path(cache) if cache is not None else default_cache() / "shards"
        self._present: set[int] = set()

    def path(self, shard: int) -> Path:
        """The cached file, named by its hash, so that one cache serves any number of stores."""
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
        """Fetch the missing ones of several shards in parallel."""
        missing = [shard for shard in shards if shard not in self._present]
        if missing:
            with ThreadPoolExecutor(_DOWNLOADS_AT_ONCE) as pool:
                list(pool.map(self.path, missing))


def _problem(path: Path, size: int, sha256: str) -> str | None:
    """A clause on the difference between a fetched file and the manifest; None without one."""
    problem = size_problem(path, size)
    if problem is None and sha256_of(path) != sha256:
        problem = "does not have the hash of the manifest"
    return problem
