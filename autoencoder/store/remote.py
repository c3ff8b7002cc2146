"""A store behind a URL: its files are fetched through fsspec, checked, and kept in a local cache.

A URL may hold credentials, so it is shown only without user, password and query, and the text of
a foreign error, which may repeat the URL, is never shown.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

import fsspec
from filelock import FileLock

from autoencoder.sources.naming import public_name
from autoencoder.store.local import size_problem
from autoencoder.store.manifest import MANIFEST_NAME, Manifest
from latentddm.engine.errors import RequestError, WorkError
from latentddm.engine.files import atomic_path, disk_error, sha256_of

_LOG = logging.getLogger("latentddm")
ATTEMPTS = 6
FIRST_DELAY = 0.5  # seconds, doubled after each failure
_DOWNLOADS_AT_ONCE = 4
_PACKAGES = {"s3": "s3fs", "http": "aiohttp", "https": "aiohttp", "gs": "gcsfs", "az": "adlfs"}
Result = TypeVar("Result")


def is_remote(location: str | Path) -> bool:
    """Whether a store lies behind a URL."""
    return isinstance(location, str) and "://" in location


class _FailedTransferError(Exception):
    """A transfer that may succeed when it is tried again; the message is fit for logs."""


class RemoteFolder:
    """The folder of a store behind a URL; every access is retried with growing pauses."""

    def __init__(self, url: str) -> None:
        self.name = public_name(url).rstrip("/")
        scheme = urlsplit(url).scheme
        try:
            if scheme in ("http", "https"):
                # fsspec logs the URLs that it is given, so credentials travel beside them.
                system, root = fsspec.core.url_to_fs(self.name, **_http_credentials(url))
            else:
                system, root = fsspec.core.url_to_fs(url)
        except ImportError:
            package = _PACKAGES.get(scheme, "the fsspec package of this protocol")
            raise RequestError(
                f"{self.name} needs a package that is not installed: pip install {package}."
            ) from None
        except ValueError:
            raise RequestError(
                f"The protocol of {self.name} is not known; use https:// or s3://."
            ) from None
        self._system: Any = system
        self._root = str(root).rstrip("/")

    def manifest(self) -> Manifest:
        """Fetch and check the manifest."""

        def fetch() -> Manifest:
            data = self._transfer(MANIFEST_NAME, self._system.cat_file)
            try:
                return Manifest.from_bytes(data, f"{self.name}/{MANIFEST_NAME}")
            except WorkError as error:
                raise _FailedTransferError(str(error)) from None

        return self._retried(MANIFEST_NAME, fetch)

    def download(self, name: str, target: Path, size: int, sha256: str) -> None:
        """Fetch a file to `target`, which appears there only if size and hash are right."""

        def fetch() -> None:
            with atomic_path(target) as temporary:
                self._transfer(name, self._system.get_file, str(temporary))
                problem = size_problem(temporary, size)
                if problem is None and sha256_of(temporary) != sha256:
                    problem = "does not have the hash of the manifest"
                if problem is not None:
                    raise _FailedTransferError(f"what arrived {problem}")

        self._retried(name, fetch)

    def _transfer(self, name: str, access: Callable[..., Result], *arguments: str) -> Result:
        """One access through fsspec. Its errors become ours, without their text."""
        try:
            return access(f"{self._root}/{name}", *arguments)
        except FileNotFoundError:
            raise WorkError(f"{self.name}/{name} does not exist; check the URL.") from None
        except PermissionError:
            raise WorkError(
                f"{self.name}/{name} may not be read; check the credentials in the environment."
            ) from None
        except Exception as error:  # every protocol of fsspec has exceptions of its own
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            status = getattr(error, "status", None)
            detail = f", status {status}" if isinstance(status, int) else ""
            raise _FailedTransferError(type(error).__name__ + detail) from None

    def _retried(self, name: str, fetch: Callable[[], Result]) -> Result:
        reason = ""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return fetch()
            except _FailedTransferError as error:
                reason = str(error)
            if attempt < ATTEMPTS:
                delay = FIRST_DELAY * 2 ** (attempt - 1)
                _LOG.warning("%s/%s: %s; again in %.1f s.", self.name, name, reason, delay)
                time.sleep(delay)
        raise WorkError(
            f"{self.name}/{name} could not be read in {ATTEMPTS} attempts ({reason}); check the "
            "network and run again."
        )


class RemoteShards:
    """The shards of a remote store, each fetched into the cache when it is first needed."""

    def __init__(self, folder: RemoteFolder, manifest: Manifest, cache: str | Path | None) -> None:
        self._folder = folder
        self._shards = manifest.shards
        self._cache = Path(cache) if cache is not None else default_cache()
        self._present: set[int] = set()
        self.advice = "delete this file of the cache and run again"

    def path(self, shard: int) -> Path:
        """The cached file; it is named by its hash, so a cache may serve any number of stores."""
        entry = self._shards[shard]
        path = self._cache / f"{entry.sha256}.tar"
        if shard not in self._present:
            # One download serves all processes of a machine.
            with self._lock(path):
                if size_problem(path, entry.bytes) is not None:
                    self._folder.download(entry.name, path, entry.bytes, entry.sha256)
            self._present.add(shard)
        return path

    def prepare(self, shards: list[int]) -> None:
        """Fetch several shards at once."""
        missing = [shard for shard in shards if shard not in self._present]
        if missing:
            with ThreadPoolExecutor(_DOWNLOADS_AT_ONCE) as pool:
                list(pool.map(self.path, missing))

    def _lock(self, path: Path) -> FileLock:
        try:
            self._cache.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise disk_error(error, self._cache) from error
        return FileLock(f"{path}.lock")


def default_cache() -> Path:
    """LATENTDDM_CACHE, or latentddm/shards in the user's cache folder."""
    chosen = os.environ.get("LATENTDDM_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "latentddm" / "shards"


def _http_credentials(url: str) -> dict[str, Any]:
    """Options of fsspec for the user, the password and the query of a URL."""
    import aiohttp

    parts = urlsplit(url)
    options: dict[str, Any] = {}
    if parts.query:
        options["params"] = dict(parse_qsl(parts.query, keep_blank_values=True))
    if parts.username is not None:
        auth = aiohttp.BasicAuth(unquote(parts.username), unquote(parts.password or ""))
        options["client_kwargs"] = {"auth": auth}
    return options
