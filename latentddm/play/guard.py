"""Which requests the page answers: those for this machine's name, for its own files.

A page on another site may send a browser's requests to this machine under a name of its own (DNS
rebinding); the header Host tells. And gradio fetches and returns the file of any URL behind
`/file=`, so that the page would serve as a proxy.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK = ("localhost", "127.0.0.1", "::1")
_OF_OTHERS = re.compile(r"(file[=/]+|proxy[=/]).*[a-z]{2,}:/", re.IGNORECASE | re.DOTALL)
_POLICY_VIOLATION = 1008  # of a websocket


def allowed_hosts(host: str) -> tuple[str, ...] | None:
    """The names in the header Host of a page served at `host`; None: any, beyond loopback."""
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        loopback = False
    return (host.lower(), *LOOPBACK) if loopback else None


def refusal(path: str, host: str, hosts: Collection[str] | None) -> str | None:
    """The reason to refuse a request; None without one."""
    name = host.rpartition(":")[0] if re.search(r":\d*$", host) else host
    if hosts is not None and name.strip("[]").lower() not in hosts:
        return "This page is for the machine that it runs on."
    if _OF_OTHERS.search(path):
        return "This page has no files of other servers."
    return None


class Guard:
    """ASGI middleware that answers 403 to a refused request."""

    def __init__(self, application: Application, hosts: Collection[str] | None) -> None:
        self.application, self.hosts = application, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        reason = None
        if scope["type"] in ("http", "websocket"):
            headers = {name.lower(): value for name, value in scope["headers"]}
            host = headers.get(b"host", b"").decode("latin-1")
            reason = refusal(scope["path"], host, self.hosts)
        if reason is None:
            await self.application(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": _POLICY_VIOLATION, "reason": reason})
        else:
            plain = [(b"content-type", b"text/plain; charset=utf-8")]
            await send({"type": "http.response.start", "status": 403, "headers": plain})
            await send({"type": "http.response.body", "body": reason.encode()})
