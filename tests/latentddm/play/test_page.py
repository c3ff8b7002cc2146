"""The page, served in this process and used through gradio's client; and where it is served."""

from __future__ import annotations

import http.client
import io
import ipaddress
import socket
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from latentddm.cli import main
from latentddm.inference.generator import SamplingConfig
from latentddm.inference.run_settings import RunSettings
from latentddm.play import serving
from latentddm.play.renderer import Renderer

needs_gradio = pytest.mark.skipif(
    find_spec("gradio") is None, reason="pip install 'latentddm[play]'"
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def address(ddm_run: Path) -> Iterator[str]:
    with serving(ddm_run, port=free_port()) as address:
        yield address


@pytest.fixture
def client(address: str) -> Any:
    from gradio_client import Client

    return Client(address, verbose=False)


def show(client: Any, **settings: Any) -> tuple[str, Path | None]:
    """The HTML of the pictures, and the zip file if there is one."""
    html, download = client.predict(api_name="/show", **settings)
    path = download["value"] if isinstance(download, dict) else download
    return html, path and Path(path)


def names(path: Path) -> set[str]:
    with zipfile.ZipFile(path) as archive:
        return set(archive.namelist())


@needs_gradio
def test_the_page_draws_with_the_settings_and_delivers_native_pictures(
    client: Any, ddm_run: Path
) -> None:
    html, path = show(client, seed=3, evaluations=2, pictures=2)
    assert html.count("<figure>") == 4
    assert path is not None
    assert path.name == "ddm-draws-seed3-nfe2.zip"
    expected = Renderer.open(ddm_run).draws(SamplingConfig(steps=2, seed=3), 2)
    with zipfile.ZipFile(path) as archive:
        for row in expected.rows:
            for index, picture in enumerate(row.pixels):
                found = Image.open(io.BytesIO(archive.read(f"{row.name}-{index}.png")))
                assert np.array_equal(np.asarray(found), picture)


@needs_gradio
def test_the_scale_of_xi_changes_the_draws_and_not_the_mean(client: Any) -> None:
    pictures = []
    for scale in (1.0, 0.5):
        _, path = show(client, evaluations=2, pictures=1, variety=scale)
        assert path is not None
        with zipfile.ZipFile(path) as archive:
            pictures.append([archive.read(name) for name in ("ddm-0.png", "mean-0.png")])
    (exact, mean), (narrow, same_mean) = pictures
    assert exact != narrow
    assert mean == same_mean


@needs_gradio
def test_variety_moves_the_scales_of_the_best_settings_together(
    ddm_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from latentddm.play.page import DRAWS, Views

    best = SamplingConfig(steps=2, solver="unipc", grid="power", xi_scale=(1.0, 0.25))
    renderer = Renderer.open(ddm_run)
    renderer.generator = replace(renderer.generator, run_settings=RunSettings(best={2: best}))
    asked: list[SamplingConfig] = []
    draws = renderer.draws
    monkeypatch.setattr(
        renderer, "draws", lambda config, count: (asked.append(config), draws(config, count))[1]
    )
    for variety, scales in ((1.0, (1.0, 0.25)), (0.6, (0.6, 0.15))):
        Views(renderer, tmp_path).show(DRAWS, 0, 2, variety, 1, "unipc", 0.0, -1, 1.0, 0.7, 4)
        assert asked[-1] == replace(best, xi_scale=pytest.approx(scales))


@needs_gradio
def test_each_tab_shows_its_view(client: Any) -> None:
    client.predict(api_name="/select_trajectory")
    html, path = show(client, evaluations=3)
    assert html.count("<figure>") == 6
    assert path is not None
    assert {"x_t-0.png", "x_0-2.png"} < names(path)
    client.predict(api_name="/select_posterior")
    html, path = show(client, t=0.6, posterior_draws=5)
    assert html.count("<figure>") == 3 + 5
    assert path is not None
    assert {"given-2.png", "draw-4.png"} < names(path)
    client.predict(api_name="/select_draws")
    assert "Mean of the same network" in show(client)[0]


@needs_gradio
@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"seed": None}, "seed"),
        ({"seed": -1}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"seed": 1e300}, "seed"),
        ({"solver": "unipc", "churn": 0.5}, "churn"),
    ],
)
def test_a_wrong_setting_is_named_on_the_page_in_the_place_of_pictures(
    client: Any, settings: dict[str, Any], named: str
) -> None:
    html, path = show(client, **settings)
    assert 'role="alert"' in html
    assert named in html
    assert "<figure>" not in html
    assert path is None


@needs_gradio
def test_other_names_other_files_and_uploads_are_refused(address: str) -> None:
    def status(method: str, path: str, host: str | None = None, body: bytes | None = None) -> int:
        connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=30)
        headers = {"Host": host} if host else {}
        if body is not None:
            headers["Content-Type"] = "multipart/form-data; boundary=x"
            part = (
                b'--x\r\nContent-Disposition: form-data; name="files"; filename="../../a"\r\n\r\n'
            )
            body = part + body + b"\r\n--x--\r\n"
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        answer.read()
        return answer.status

    assert status("GET", "/") == 200
    assert status("GET", "/", "localhost") == 200
    assert status("GET", "/", "evil.example") == 403
    assert status("GET", "/gradio_api/file=https://evil.example/x") == 403
    for path in ("/etc/passwd", "../../../../etc/passwd", "%2e%2e/%2e%2e/etc/passwd", __file__):
        assert status("GET", f"/gradio_api/file={path}") in (403, 404), path
    assert status("POST", "/gradio_api/upload", body=bytes(100_000)) in (400, 413)


@needs_gradio
def test_the_page_is_served_to_this_machine_alone_and_gone_afterwards(ddm_run: Path) -> None:
    port = free_port()

    def listening() -> set[str]:
        connections = psutil.Process().net_connections()
        return {c.laddr.ip for c in connections if c.laddr.port == port and c.status == "LISTEN"}

    with serving(ddm_run, port=port):
        assert listening()
        assert all(ipaddress.ip_address(ip).is_loopback for ip in listening())
    assert not listening()


@needs_gradio
def test_class_labels_are_offered_where_the_run_has_classes(
    renderer: Renderer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from latentddm.play.page import build_page

    def visible(label: str) -> bool:
        blocks = build_page(renderer, tmp_path).blocks.values()
        (found,) = [block for block in blocks if getattr(block, "label", None) == label]
        return bool(found.visible)

    assert not visible("Class label")
    assert not visible("Guidance")
    monkeypatch.setattr(Renderer, "classes", 3)
    assert visible("Class label")
    assert visible("Guidance")


@needs_gradio
def test_a_port_that_is_taken_is_named_with_the_remedy(
    ddm_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["play", str(ddm_run), "--port", str(port)]) == 2
    said = capsys.readouterr().err
    assert str(port) in said
    assert "--port" in said


def test_a_missing_gradio_names_the_command(
    ddm_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["play", str(ddm_run)]) == 2
    assert "pip install 'latentddm[play]'" in capsys.readouterr().err
