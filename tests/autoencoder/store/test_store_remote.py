"""Stores at a URL: retries, errors by name, and no leak of credentials or of paths."""

from __future__ import annotations

import functools
import http.server
import itertools
import json
import logging
import socket
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from autoencoder import remote
from autoencoder.store import LatentStore, verify_store
from autoencoder.store import manifest as manifest_module
from latentddm.engine.errors import JobError, UserError

pytest.importorskip("aiohttp")


class Handler(http.server.SimpleHTTPRequestHandler):
    """A server of a folder that drops every fifth request and truncates every seventh."""

    numbers = itertools.count(1)
    always_drop = False
    authorised = False

    def do_GET(self) -> None:
        number = next(self.numbers)
        if "Authorization" in self.headers and "X-Amz-Signature=SECRET" in self.path:
            type(self).authorised = True
        self.path = self.path.partition("?")[0]
        if self.always_drop or number % 5 == 0:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        data = path.read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if number % 7 == 0 else data)
        self.close_connection = True

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(autouse=True)
def short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "FIRST_DELAY", 0.01)


@pytest.fixture
def served(tmp_path: Path, toy: SimpleNamespace) -> Iterator[SimpleNamespace]:
    toy.encode(tmp_path / "served" / "store")

    class Fresh(Handler):
        numbers = itertools.count(1)

    serve = functools.partial(Fresh, directory=str(tmp_path / "served"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield SimpleNamespace(
        url=f"http://127.0.0.1:{server.server_port}/store",
        handler=Fresh,
        folder=tmp_path / "served" / "store",
        cache=tmp_path / "cache",
    )
    server.shutdown()
    server.server_close()


def test_batches_over_a_bad_network_equal_local_ones(served: SimpleNamespace) -> None:
    store = LatentStore(served.url, cache=served.cache)
    local = LatentStore(served.folder)
    pairs = zip(store.stream(10), local.stream(10), strict=False)
    for found, expected in itertools.islice(pairs, 40):
        assert torch.equal(found.latents, expected.latents)
    assert next(served.handler.numbers) > 10
    cached = sorted(path.name for path in served.cache.glob("*.tar"))
    assert cached == sorted(f"{shard.sha256}.tar" for shard in local.manifest.shards)
    assert not list(served.cache.glob("*.partial"))
    assert verify_store(served.url, cache=served.cache).ok


def test_cached_shards_are_not_fetched_again(served: SimpleNamespace) -> None:
    next(LatentStore(served.url, cache=served.cache).stream(200))
    served.handler.numbers = counter = itertools.count(1)
    next(LatentStore(served.url, cache=served.cache).stream(200))
    assert next(counter) == 2  # the manifest alone


def test_an_unreachable_file_is_named_after_the_retries(served: SimpleNamespace) -> None:
    store = LatentStore(served.url, cache=served.cache)
    served.handler.always_drop = True
    with pytest.raises(JobError, match=rf"latents-\d+\.tar .*{remote.ATTEMPTS} attempts"):
        next(store.stream(8))
    with pytest.raises(JobError, match=r"manifest\.json .*check the network"):
        LatentStore(served.url, cache=served.cache)


def test_a_wrong_shard_never_enters_the_cache(served: SimpleNamespace) -> None:
    shard = served.folder / "latents-000003.tar"
    data = bytearray(shard.read_bytes())
    data[900] ^= 1
    shard.write_bytes(data)
    store = LatentStore(served.url, cache=served.cache)
    with pytest.raises(JobError, match=r"latents-000003\.tar .*hash of the manifest"):
        list(itertools.islice(store.stream(200), 1))
    assert len(list(served.cache.glob("*.tar"))) <= 6
    (problem,) = verify_store(served.url, cache=served.cache).problems
    assert problem.file == "latents-000003.tar"


def test_a_missing_shard_is_named(served: SimpleNamespace) -> None:
    (served.folder / "latents-000003.tar").unlink()
    store = LatentStore(served.url, cache=served.cache)
    with pytest.raises(JobError, match=r"latents-000003\.tar does not exist"):
        next(store.stream(200))


def test_credentials_are_never_shown(
    served: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    secret = served.url.replace("127", "someone:SECRET@127") + "?X-Amz-Signature=SECRET"
    store = LatentStore(secret, cache=served.cache)
    next(store.stream(200))
    served.handler.always_drop = True
    messages = []
    for location in (secret, secret.replace("/store", "/nothing")):
        with pytest.raises(JobError) as caught:
            LatentStore(location, cache=served.cache)
        messages += traceback.format_exception(caught.value)
    served.handler.always_drop = False
    with pytest.raises(JobError) as caught:
        LatentStore(secret.replace("/store", "/nothing"), cache=served.cache)
    messages += traceback.format_exception(caught.value)
    assert "retry in" in caplog.text
    assert served.handler.authorised
    assert "SECRET" not in "\n".join([*messages, caplog.text])


def test_a_repair_of_a_remote_store_is_refused_without_credentials(toy: SimpleNamespace) -> None:
    secret = "https://someone:SECRET@host/store?token=SECRET"
    with pytest.raises(UserError, match=r"https://host/store .*local copy") as caught:
        verify_store(secret, source=toy.Source(3), autoencoder=toy.Autoencoder())
    assert "SECRET" not in str(caught.value)


def test_hostile_names_never_leave_the_cache(served: SimpleNamespace) -> None:
    path = served.folder / "manifest.json"
    content = json.loads(path.read_text())
    del content["checksum"]
    content["shards"][0]["name"] = "../../x"
    content["checksum"] = manifest_module._checksum(content)
    path.write_text(json.dumps(content))
    with pytest.raises(JobError, match=r"manifest\.json"):
        LatentStore(served.url, cache=served.cache)
    assert not served.cache.exists()


def test_an_unknown_protocol_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"carrier-pigeon.*https://"):
        LatentStore("carrier-pigeon://coop/store")


def test_a_store_in_s3(
    tmp_path: Path, toy: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("s3fs", reason="pip install s3fs")
    moto = pytest.importorskip("moto.server", reason="pip install 'moto[server]'")
    import fsspec
    from werkzeug.serving import make_server

    for name, value in (
        ("AWS_ACCESS_KEY_ID", "someone"),
        ("AWS_SECRET_ACCESS_KEY", "SECRET"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
        ("AWS_CONFIG_FILE", str(tmp_path / "none")),
        ("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none")),
        ("AWS_EC2_METADATA_DISABLED", "true"),
    ):
        monkeypatch.setenv(name, value)
    unreliable = Unreliable(moto.DomainDispatcherApplication(moto.create_backend_app))
    server = make_server("127.0.0.1", 0, unreliable, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    try:
        toy.encode(tmp_path / "store")
        system = fsspec.filesystem("s3")
        system.mkdir("bucket")
        for path in (tmp_path / "store").glob("*.*"):
            system.put_file(str(path), f"bucket/stores/toy/{path.name}")
        unreliable.numbers = itertools.count(1)
        store = LatentStore("s3://bucket/stores/toy", cache=tmp_path / "cache")
        local = LatentStore(tmp_path / "store")
        pairs = zip(store.stream(10), local.stream(10), strict=False)
        for found, expected in itertools.islice(pairs, 40):
            assert torch.equal(found.latents, expected.latents)
        assert next(unreliable.numbers) > 10
        with pytest.raises(JobError, match=r"s3://bucket/stores/none/manifest\.json does not"):
            LatentStore("s3://bucket/stores/none", cache=tmp_path / "cache")
    finally:
        server.shutdown()
        server.server_close()


class Unreliable:
    """A WSGI application that drops every fifth reading request and truncates every seventh."""

    def __init__(self, application: Callable[..., Iterable[bytes]]) -> None:
        self.application = application
        self.numbers: Iterator[int] | None = None

    def __call__(self, environ: dict, start_response: Callable) -> list[bytes]:
        number = 1 if self.numbers is None else next(self.numbers)
        if number % 5 == 0:
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            return [b""]
        body = b"".join(self.application(environ, start_response))
        return [body[: len(body) // 2] if number % 7 == 0 else body]
