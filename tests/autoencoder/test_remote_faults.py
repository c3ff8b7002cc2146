"""Object storage that answers 403, 404, 500, late or with half of a file: retries, sentences."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from image_files import NAMES, files, keys, write_zip
from messages import raises_naming

from autoencoder import remote
from autoencoder.images import open_source
from autoencoder.remote import ATTEMPTS, RemoteFolder
from latentddm.engine.errors import JobError


class StatusError(Exception):
    """The error of a client of HTTP, with its status."""

    def __init__(self, status: int) -> None:
        super().__init__(f"https://user:SECRET@host/file answered {status}")
        self.status = status


class FaultyFileSystem(MemoryFileSystem):
    """Files in memory; each read or download first calls the next of `faults`."""

    protocol = "faulty"
    store: dict = {}  # noqa: RUF012
    faults: list[Callable[[bytes], bytes]] = []  # noqa: RUF012
    reads = 0

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.replace("faulty://", "memory://"))

    def _read(self, path: str) -> bytes:
        type(self).reads += 1
        data = super().cat_file(path)
        return self.faults.pop(0)(data) if self.faults else data

    def cat_file(self, path: str, start: object = None, end: object = None, **_: object) -> bytes:
        return self._read(path)

    def get_file(self, path: str, target: str, **_: object) -> None:
        Path(target).write_bytes(self._read(path))


def status(number: int) -> Callable[[bytes], bytes]:
    def answer(data: bytes) -> bytes:
        raise StatusError(number)

    return answer


def error(number: int) -> Callable[[bytes], bytes]:
    def answer(data: bytes) -> bytes:
        raise OSError(number, os.strerror(number))

    return answer


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def times_out(data: bytes) -> bytes:
    raise TimeoutError("no answer in time")


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FaultyFileSystem]]:
    """A bucket with images.zip."""
    fsspec.register_implementation("faulty", FaultyFileSystem, clobber=True)
    monkeypatch.setattr(remote, "FIRST_DELAY", 0.001)
    monkeypatch.setenv("LATENTDDM_CACHE", str(tmp_path / "cache"))
    FaultyFileSystem.store.clear()
    FaultyFileSystem.faults, FaultyFileSystem.reads = [], 0
    system = FaultyFileSystem(skip_instance_cache=True)
    archive = write_zip(tmp_path / "images.zip", files())
    system.pipe_file("/bucket/images.zip", archive.read_bytes())
    yield FaultyFileSystem
    FaultyFileSystem.store.clear()


URL = "faulty://bucket/images.zip"


def left(tmp_path: Path) -> list[str]:
    return [path.name for path in (tmp_path / "cache").rglob("*.partial")]


def test_a_bad_moment_is_retried_and_the_images_are_those_of_the_bucket(
    bucket: type[FaultyFileSystem], tmp_path: Path
) -> None:
    bucket.faults = [status(500), half, times_out, status(503), error(errno.EIO)]
    assert keys(open_source(URL)) == NAMES
    assert bucket.reads == 6
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        (status(500), "status 500"),
        (half, "bytes and should have"),
        (times_out, "TimeoutError"),
        (error(errno.EIO), "OSError"),
    ],
)
def test_a_bucket_that_stays_bad_is_one_sentence_without_credentials(
    fault: Callable[[bytes], bytes],
    named: str,
    bucket: type[FaultyFileSystem],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    bucket.faults = [fault] * 50
    with raises_naming(JobError, "images.zip", f"{ATTEMPTS} attempts", named, "check the network"):
        open_source(URL)
    assert bucket.reads == ATTEMPTS
    assert "SECRET" not in caplog.text
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    ("number", "named"),
    [(errno.EACCES, "credentials"), (errno.ENOENT, "does not exist")],
)
def test_what_no_retry_mends_is_not_retried(
    number: int, named: str, bucket: type[FaultyFileSystem]
) -> None:
    bucket.faults = [error(number)] * 50
    with raises_naming(JobError, "images.zip", named):
        open_source(URL)
    assert bucket.reads == 1


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_cache_that_cannot_be_written_is_named_and_not_the_network(
    number: int, bucket: type[FaultyFileSystem], tmp_path: Path
) -> None:
    bucket.faults = [error(number)] * 50
    with raises_naming(JobError, str(tmp_path / "cache"), "images.zip"):
        RemoteFolder("faulty://bucket").download(
            "images.zip", tmp_path / "cache" / "images.zip", lambda path: None
        )
    assert bucket.reads == 1
    assert left(tmp_path) == []
