"""Remote files: transfers through fsspec with retries, and a local cache.

A URL may hold credentials, so messages show it without user, password and query, and never the text
of a foreign error, which may repeat the URL.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

import fsspec

from autoencoder.sources.naming import public_name
from latentddm.engine.atomic_io import atomic_path, disk_error, size_problem
from latentddm.engine.errors import JobError, UserError
from latentddm.engine.locks import locked

_LOG = logging.getLogger("latentddm")
ATTEMPTS = 6
FIRST_DELAY = 0.5  # seconds, doubled after each failure
_PACKAGES = {"s3": "s3fs", "http": "aiohttp", "https": "aiohttp", "gs": "gcsfs", "az": "adlfs"}
_OF_THE_CACHE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)  # no retry mends these
Result = TypeVar("Result")


def is_remote(location: str | Path) -> bool:
    """Whether a location is a URL."""
    return isinstance(location, str) and "://" in location


class FailedTransferError(Exception):
    """A failed transfer that is worth a retry; its message is safe for logs."""


class RemoteFolder:
    """A folder at a URL; every access is retried with growing pauses.

    UserError for an unknown protocol or one whose package is not installed.
    """

    def __init__(self, url: str) -> None:
        self.name = public_name(url).rstrip("/")
        scheme = urlsplit(url).scheme
        try:
            if scheme in ("http", "https"):
                # fsspec logs its URLs, so credentials are passed apart from them.
                system, root = fsspec.core.url_to_fs(self.name, **_http_credentials(url))
            else:
                system, root = fsspec.core.url_to_fs(url)
        except ImportError:
            package = _PACKAGES.get(scheme, "the fsspec package of this protocol")
            raise UserError(
                f"{self.name} needs a package that is not installed: pip install {package}."
            ) from None
        except ValueError:
            raise UserError(
                f"The protocol of {self.name} is unknown; use https:// or s3://."
            ) from None
        self._system: Any = system
        self._root = str(root).rstrip("/")

    def read(self, name: str, check: Callable[[bytes], Result]) -> Result:
        """The value of `check` on the bytes of a file; its FailedTransferError causes a retry."""
        return self._retried(name, lambda: check(self._transfer(name, self._system.cat_file)))

    def size(self, name: str) -> int | None:
        """The size of a file in bytes; None if the server does not report one."""
        return self._retried(name, lambda: self._transfer(name, self._system.size))

    def download(self, name: str, target: Path, problem: Callable[[Path], str | None]) -> None:
        """Fetch a file to `target`, atomically; a `problem` of the fetched file causes a retry."""

        def fetch() -> None:
            with atomic_path(target) as temporary:
                self._transfer(name, self._system.get_file, str(temporary))
                found = problem(temporary)
                if found is not None:
                    raise FailedTransferError(f"the fetched file {found}")

        self._retried(name, fetch)

    def _transfer(self, name: str, access: Callable[..., Any], *arguments: str) -> Any:
        """One access through fsspec; its errors are translated, without their text."""
        try:
            return access(f"{self._root}/{name}", *arguments)
        except FileNotFoundError as error:
            # fsspec also raises this for a server that does not answer; the cause differs.
            cause = error.__cause__
            absent = isinstance(cause, FileNotFoundError | None)
            if not absent and getattr(cause, "status", None) != 404:
                raise FailedTransferError(type(cause).__name__) from None
            raise JobError(f"{self.name}/{name} does not exist; check the URL.") from None
        except PermissionError:
            raise JobError(
                f"{self.name}/{name} may not be read; check the credentials in the environment."
            ) from None
        except Exception as error:  # the exceptions differ between fsspec's protocols
            if isinstance(error, OSError) and error.errno in _OF_THE_CACHE:
                raise
            status = getattr(error, "status", None)
            detail = f", status {status}" if isinstance(status, int) else ""
            raise FailedTransferError(type(error).__name__ + detail) from None

    def _retried(self, name: str, fetch: Callable[[], Result]) -> Result:
        reason = ""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return fetch()
            except FailedTransferError as error:
                reason = str(error)
            if attempt < ATTEMPTS:
                delay = FIRST_DELAY * 2 ** (attempt - 1)
                _LOG.warning("%s/%s: %s; retry in %.1f s.", self.name, name, reason, delay)
                time.sleep(delay)
        raise JobError(
            f"{self.name}/{name} could not be read in {ATTEMPTS} attempts ({reason}); check the "
            "network and run again."
        )


def cached_file(folder: RemoteFolder, name: str, kind: str) -> Path:
    """The local copy of a file, fetched unless the cache holds one of the same size.

    Copies from one remote folder share a folder of the cache, below `kind`.
    """
    place = hashlib.sha256(folder.name.encode()).hexdigest()[:16]
    path = default_cache() / kind / place / name
    with cache_lock(path):
        size = folder.size(name)
        if not path.is_file() or (size is not None and size_problem(path, size)):
            _LOG.info("fetching %s/%s", folder.name, name)
            folder.download(
                name, path, lambda file: None if size is None else size_problem(file, size)
            )
    return path


@contextmanager
def cache_lock(path: Path) -> Iterator[None]:
    """The lock for fetching a file of the cache, once for all processes of a machine."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(error, path.parent) from error
    with locked(Path(f"{path}.lock")):
        yield


def default_cache() -> Path:
    """The folder LATENTDDM_CACHE, or latentddm in the user's cache folder."""
    chosen = os.environ.get("LATENTDDM_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "latentddm"


def _http_credentials(url: str) -> dict[str, Any]:
    """fsspec options with the user, the password and the query of a URL."""
    import aiohttp

    parts = urlsplit(url)
    options: dict[str, Any] = {}
    if parts.query:
        options["params"] = dict(parse_qsl(parts.query, keep_blank_values=True))
    if parts.username is not None:
        auth = aiohttp.BasicAuth(unquote(parts.username), unquote(parts.password or ""))
        options["client_kwargs"] = {"auth": auth}
    return options
