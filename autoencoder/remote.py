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
from latentddm.engine.atomic_io import atomic_path, make_folder, size_problem
from latentddm.engine.errors import JobError, UserError
from latentddm.engine.locks import locked

_LOG = logging.getLogger("latentddm")
ATTEMPTS = 6
FIRST_DELAY = 0.5  # seconds, doubled after each failure
CONNECT_TIMEOUT, READ_TIMEOUT = 5.0, 20.0  # seconds without any answer; a transfer has no limit
_PACKAGES = {"s3": "s3fs", "http": "aiohttp", "https": "aiohttp", "gs": "gcsfs", "az": "adlfs"}
_OF_THE_CACHE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)  # no retry mends these
Result = TypeVar("Result")


def is_remote(location: str | Path) -> bool:
    """Whether a location is a URL."""
    return isinstance(location, str) and "://" in location


def local_output(location: str | Path) -> Path:
    """The path of an output; UserError for a URL, to which nothing is written."""
    if is_remote(location):
        raise UserError(
            f"The output {public_name(str(location))} is a URL; give a folder of this machine, and "
            "copy it there afterwards."
        )
    return Path(location)


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
                system, root = fsspec.core.url_to_fs(self.name, **_http_options(url))
            elif scheme == "s3":
                system, root = fsspec.core.url_to_fs(url, config_kwargs=_s3_config())
                system.retries = 1  # `_retried` does it
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
        except Exception as error:  # the exceptions differ between fsspec's protocols
            cause: BaseException = error
            if isinstance(error, FileNotFoundError):
                # fsspec also raises this for a server that does not answer; the cause differs.
                cause = error.__cause__ or error
            elif isinstance(error, OSError) and error.errno in _OF_THE_CACHE:
                raise
            status = _status(cause)
            if isinstance(cause, FileNotFoundError) or status == 404:
                raise JobError(f"{self.name}/{name} does not exist; check the URL.") from None
            if isinstance(cause, PermissionError) or _is_refused(cause, status):
                raise JobError(
                    f"{self.name}/{name} may not be read; check the credentials (in the URL, or "
                    "in the environment)."
                ) from None
            detail = f", status {status}" if status is not None else ""
            raise FailedTransferError(type(cause).__name__ + detail) from None

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
    make_folder(path.parent)
    with locked(Path(f"{path}.lock")):
        yield


def default_cache() -> Path:
    """The folder LATENTDDM_CACHE, or latentddm in the user's cache folder."""
    chosen = os.environ.get("LATENTDDM_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "latentddm"


def _status(error: BaseException) -> int | None:
    """The HTTP status of an error of aiohttp, or of one of botocore that s3fs has translated."""
    response = getattr(error.__cause__, "response", None) or getattr(error, "response", None)
    found = getattr(error, "status", None)
    if isinstance(response, dict):
        found = response.get("ResponseMetadata", {}).get("HTTPStatusCode", found)
    return found if isinstance(found, int) else None


def _is_refused(error: BaseException, status: int | None) -> bool:
    """Whether an error is one of credentials, which no retry mends."""
    return status in (401, 403) or "Credentials" in type(error).__name__


def _http_options(url: str) -> dict[str, Any]:
    """fsspec options with the user, the password and the query of a URL, and the time limits."""
    import aiohttp

    parts = urlsplit(url)
    limits = aiohttp.ClientTimeout(
        total=None, sock_connect=CONNECT_TIMEOUT, sock_read=READ_TIMEOUT
    )  # aiohttp's own limit is five minutes for a whole transfer
    client: dict[str, Any] = {"timeout": limits}
    options: dict[str, Any] = {"client_kwargs": client}
    if parts.query:
        options["params"] = dict(parse_qsl(parts.query, keep_blank_values=True))
    if parts.username is not None:
        client["auth"] = aiohttp.BasicAuth(unquote(parts.username), unquote(parts.password or ""))
    return options


def _s3_config() -> dict[str, Any]:
    """Options of botocore: the time limits, and no retries, which would multiply with those here.

    botocore and s3fs make 25 attempts by default: of a server that never answers, six minutes.
    """
    return {
        "connect_timeout": CONNECT_TIMEOUT,
        "read_timeout": READ_TIMEOUT,
        "retries": {"total_max_attempts": 1},
    }
