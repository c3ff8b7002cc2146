"""Real clients of S3 and HTTP and a server that fails: the right bytes, or soon one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from image_files import NAMES, files, keys, write_zip
from messages import assert_names, raises_naming
from object_storage import ENVIRONMENT, ObjectStorage, serve_objects

from autoencoder import remote
from autoencoder.images import open_source
from autoencoder.remote import ATTEMPTS
from autoencoder.store import LatentStore
from latentddm.cli import main
from latentddm.engine.errors import JobError

pytest.importorskip("aiohttp", reason="pip install 'latentddm[http]'")
SCHEMES = ("s3", "http")


@pytest.fixture
def storage(
    tmp_path: Path, tiny_store: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ObjectStorage]:
    """A bucket with images.zip and a latent store; the client's limits are short."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LATENTDDM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "FIRST_DELAY", 0.001)
    with serve_objects() as served:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{served.port}")
        served.objects["/bucket/images.zip"] = write_zip(
            tmp_path / "images.zip", files()
        ).read_bytes()
        for path in tiny_store.glob("*.*"):
            served.objects[f"/bucket/store/{path.name}"] = path.read_bytes()
        yield served


def url(storage: ObjectStorage, scheme: str, name: str) -> str:
    if scheme == "s3":
        system = pytest.importorskip("s3fs", reason="pip install 'latentddm[s3]'").S3FileSystem
        system.clear_instance_cache()  # a client of the server of an earlier test
        return f"s3://bucket/{name}"
    return f"http://127.0.0.1:{storage.port}/bucket/{name}"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_bad_answers_are_retried_and_the_bytes_are_those_of_the_bucket(
    scheme: str, storage: ObjectStorage, tiny_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "READ_TIMEOUT", 1.0)
    place = url(storage, scheme, "store")
    storage.faults = [500, "short", 503, "slow"]
    store = LatentStore(place)
    assert (store.raw(0, 4) == LatentStore(tiny_store).raw(0, 4)).all()
    storage.faults = [500, 503]
    assert keys(open_source(url(storage, scheme, "images.zip"))) == NAMES


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(
    ("fault", "named"), [(500, "status 500"), ("slow", "Timeout"), ("short", "")]
)
def test_a_storage_that_stays_bad_ends_the_encoding_in_time_with_one_sentence(
    fault: int | str,
    named: str,
    scheme: str,
    storage: ObjectStorage,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """No retries of the clients multiply with ours, and no limit of theirs is minutes long."""
    monkeypatch.setattr(remote, "READ_TIMEOUT", 0.1 if fault == "slow" else 5.0)
    images = url(storage, scheme, "images.zip")
    storage.faults, storage.forever = [fault], True
    arguments = ("encode", "--images", images, "--autoencoder", "pixels", "--size", "16")
    assert main([*arguments, "--output", str(tmp_path / "store")]) == 1
    (sentence,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert_names(sentence, "images.zip", f"{ATTEMPTS} attempts", named, "check the network")
    assert storage.requests <= 3 * ATTEMPTS  # s3fs and aiohttp ask up to thrice for a size
    assert not (tmp_path / "store").exists()
    assert not list((tmp_path / "cache").rglob("*.partial"))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", ["images.zip", "store"])
def test_a_refusal_names_the_credentials_at_once(
    scheme: str, name: str, storage: ObjectStorage, caplog: pytest.LogCaptureFixture
) -> None:
    place = url(storage, scheme, name)
    storage.faults, storage.forever = [403], True
    with raises_naming(JobError, name, "may not be read", "credentials"):
        LatentStore(place) if name == "store" else open_source(place)
    assert storage.requests <= 3
    assert "retry" not in caplog.text


def test_missing_credentials_of_s3_are_named_at_once(
    storage: ObjectStorage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    place = url(storage, "s3", "images.zip")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with raises_naming(JobError, "images.zip", "credentials"):
        open_source(place)
    assert storage.requests == 0
    assert "retry" not in caplog.text
