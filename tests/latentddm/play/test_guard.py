"""The page answers requests for this machine's name and its own files, and no others."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from latentddm.play.guard import Guard, allowed_hosts, refusal

LOCAL = allowed_hosts("127.0.0.1")


@pytest.mark.parametrize(
    "host", ["127.0.0.1:7860", "localhost:7860", "LOCALHOST", "[::1]:7860", "127.0.0.1"]
)
def test_a_request_for_this_machine_is_answered(host: str) -> None:
    assert refusal("/", host, LOCAL) is None


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:7860", "", "127.0.0.1.evil.example", "[::2]:7860"]
)
def test_a_request_under_another_name_is_refused(host: str) -> None:
    assert "machine" in str(refusal("/", host, LOCAL))


def test_beyond_loopback_any_name_is_answered() -> None:
    assert allowed_hosts("0.0.0.0") is None
    assert allowed_hosts("gpu7.lab") is None
    assert refusal("/", "gpu7.lab:7860", None) is None


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=https://evil.example/x",
        "/gradio_api/file=HTTP://10.0.0.1/x",
        "/gradio_api/file/http:/evil.example/x",
        "/gradio_api/proxy=https://evil.example/x",
    ],
)
def test_the_page_is_no_proxy(path: str) -> None:
    assert "other servers" in str(refusal(path, "localhost", LOCAL))


@pytest.mark.parametrize("path", ["/gradio_api/file=C:/x/a.zip", "/gradio_api/file=/tmp/x/a.zip"])
def test_its_own_downloads_are_answered(path: str) -> None:
    assert refusal(path, "localhost", LOCAL) is None


def test_the_middleware_answers_403_and_closes_websockets() -> None:
    async def never(*arguments: Any) -> None:
        raise AssertionError("a refused request has come through")

    def answers(kind: str) -> list[dict[str, Any]]:
        sent: list[dict[str, Any]] = []

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": kind, "path": "/", "headers": [(b"Host", b"evil.example")]}
        asyncio.run(Guard(never, LOCAL)(scope, never, send))
        return sent

    assert [message.get("status") for message in answers("http")] == [403, None]
    assert [message["type"] for message in answers("websocket")] == ["websocket.close"]
