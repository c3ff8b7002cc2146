"""A stand-in for the Hugging Face hub: enough of its interface to create and to commit."""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class HubServer:
    """Serves on loopback while in a `with`; `files` holds what was committed, by path."""

    def __init__(self, refuse: bool = False) -> None:
        hub = self
        self.files: dict[str, bytes] = {}
        self.created: list[dict[str, Any]] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if refuse:
                    return self._answer({"error": "Invalid username or password."}, 401)
                if self.path == "/api/repos/create":
                    hub.created.append(json.loads(body))
                    name = hub.created[-1]["name"]
                    return self._answer({"url": f"{hub.address}/someone/{name}"})
                if self.path == "/api/validate-yaml":  # the card's metadata
                    return self._answer({"errors": [], "warnings": []})
                if "/preupload/" in self.path:
                    files = [
                        {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                        for file in json.loads(body)["files"]
                    ]
                    return self._answer({"files": files})
                if "/commit/" in self.path:
                    for line in body.splitlines():
                        entry = json.loads(line)
                        if entry["key"] == "file":
                            content = base64.b64decode(entry["value"]["content"])
                            hub.files[entry["value"]["path"]] = content
                    address = f"{hub.address}/someone/model/commit/0123456789abcdef"
                    return self._answer({"commitUrl": address, "commitOid": "0123456789abcdef"})
                return self._answer({"error": f"no such address: {self.path}"}, 404)

            def do_GET(self) -> None:
                self._answer({"sha": "0123456789abcdef", "id": "someone/model", "siblings": []})

            def _answer(self, value: dict[str, Any], status: int = 200) -> None:
                data = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *arguments: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> HubServer:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()
