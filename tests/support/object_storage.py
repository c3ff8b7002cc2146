"""A local object storage, by S3's protocol and by plain HTTP, that fails on demand."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

DATE = "Sun, 29 Nov 2026 06:46:00 GMT"
ENVIRONMENT = {  # of a client without a configuration of its own
    "AWS_ACCESS_KEY_ID": "someone",
    "AWS_SECRET_ACCESS_KEY": "SECRET",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_CONFIG_FILE": "none",
    "AWS_SHARED_CREDENTIALS_FILE": "none",
    "AWS_EC2_METADATA_DISABLED": "true",
}


class ObjectStorage:
    """objects: path (/bucket/name) -> bytes. faults: of the next requests, then none.

    A fault is a status, `slow` (no answer before the end of the test) or `short` (half of the
    body under the length of the whole). forever: the last fault stays. requests: their number.
    """

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.faults: list[int | str] = []
        self.forever = False
        self.requests = 0
        self.ended = threading.Event()
        self.lock = threading.Lock()
        self.port = 0

    def next_fault(self) -> int | str | None:
        with self.lock:
            self.requests += 1
            if self.forever and len(self.faults) == 1:
                return self.faults[0]
            return self.faults.pop(0) if self.faults else None


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    storage: ObjectStorage

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        fault = self.storage.next_fault()
        self.close_connection = True
        if fault == "slow":
            self.storage.ended.wait(60)
            return
        data = self.storage.objects.get(self.path.partition("?")[0])
        status = fault if isinstance(fault, int) else 200 if data is not None else 404
        body = data if status == 200 and data is not None else _error(status)
        self.send_response(status)
        for name, value in (
            *(("Content-Length", str(len(body))), ("Last-Modified", DATE), ("ETag", '"1"')),
            ("Connection", "close"),
        ):
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body[: len(body) // 2] if fault == "short" else body)

    def log_message(self, *arguments: Any) -> None:
        pass


def _error(status: int) -> bytes:
    codes = {403: "AccessDenied", 404: "NoSuchKey", 500: "InternalError", 503: "SlowDown"}
    return f"<Error><Code>{codes[status]}</Code><Message>no</Message></Error>".encode()


@contextmanager
def serve_objects() -> Iterator[ObjectStorage]:
    """A storage that answers at 127.0.0.1:port until the end of the block."""
    storage = ObjectStorage()
    handler = type("Handler", (_Handler,), {"storage": storage})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    storage.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield storage
    finally:
        storage.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()
