"""Images and autoencoders at a URL: fetched once, checked, and equal to local ones."""

from __future__ import annotations

import functools
import http.server
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from diffusers import AutoencoderKL
from PIL import Image

from autoencoder import remote
from autoencoder.images import open_source
from autoencoder.models import load_autoencoder
from autoencoder.portraits import draw_portrait
from latentddm.engine.errors import JobError, UserError

pytest.importorskip("aiohttp", reason="pip install 'latentddm[http]'")


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """A server of a folder with a zip and two shards; `requests`: the paths of all GETs."""
    folder = tmp_path / "served"
    folder.mkdir()
    images = tmp_path / "images"
    images.mkdir()
    for index in range(4):
        Image.fromarray(draw_portrait(index, 32)[0]).save(images / f"{index}.png")
    with zipfile.ZipFile(folder / "all.zip", "w") as archive:
        for path in sorted(images.iterdir()):
            archive.write(path, path.name)
    for shard in range(2):
        with tarfile.open(folder / f"{shard:03d}.tar", "w") as archive:
            for index in (2 * shard, 2 * shard + 1):
                archive.add(images / f"{index}.png", f"{index}.png")
    requests: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.path)
            super().do_GET()

        def log_message(self, *arguments: object) -> None:
            pass

    serve = functools.partial(Handler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("LATENTDDM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "FIRST_DELAY", 0.01)
    yield SimpleNamespace(
        url=f"http://127.0.0.1:{server.server_port}",
        folder=folder,
        requests=requests,
        server=server,
    )
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("name", ["all.zip", "{000..001}.tar"])
def test_images_at_a_url_equal_those_of_the_local_file_and_are_fetched_once(
    served: SimpleNamespace, name: str
) -> None:
    remote_source = open_source(f"{served.url}/{name}")
    local_source = open_source(str(served.folder / name))
    assert len(remote_source) == len(local_source) == 4
    for index in range(4):
        assert remote_source.key(index) == local_source.key(index)
        assert np.array_equal(remote_source.load(index).image, local_source.load(index).image)
    fetched = len(served.requests)
    assert fetched >= 1
    open_source(f"{served.url}/{name}")
    assert len(served.requests) == fetched


def test_a_changed_original_is_fetched_again(served: SimpleNamespace) -> None:
    assert len(open_source(f"{served.url}/000.tar")) == 2
    Image.fromarray(draw_portrait(9, 48)[0]).save(served.folder / "9.png")
    with tarfile.open(served.folder / "000.tar", "a") as archive:
        archive.add(served.folder / "9.png", "9.png")
        archive.add(served.folder / "9.png", "10.png")
    assert len(open_source(f"{served.url}/000.tar")) == 4


def test_the_name_of_a_source_has_no_credentials(served: SimpleNamespace) -> None:
    secret = served.url.replace("http://", "http://user:SECRET@") + "/all.zip?token=SECRET"
    assert "SECRET" not in open_source(secret).name


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("images/", UserError, r"images/ .*\.zip, a \.tar"),
        ("*.tar", UserError, r"\*\.tar .*\.zip, a \.tar"),
        ("photo.png", UserError, r"photo\.png .*\.zip, a \.tar"),
        ("{000..001.tar", UserError, r"braces .*000\.\.001\.tar"),
        ("none.zip", JobError, r"none\.zip does not exist"),
    ],
)
def test_wrong_urls_are_named_with_the_reason(
    served: SimpleNamespace, name: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        open_source(f"{served.url}/{name}")


def test_without_a_network_the_message_names_the_file_and_the_remedy(
    served: SimpleNamespace,
) -> None:
    served.server.shutdown()
    served.server.server_close()
    with pytest.raises(JobError, match=r"all\.zip .* check the network"):
        open_source(f"{served.url}/all.zip")


def test_an_autoencoder_at_a_url_equals_the_local_one(served: SimpleNamespace) -> None:
    AutoencoderKL(
        block_out_channels=(8,), norm_num_groups=4, latent_channels=3, mid_block_add_attention=False
    ).save_pretrained(served.folder / "vae")
    fetched = load_autoencoder(f"{served.url}/vae")
    assert fetched.fingerprint == load_autoencoder(served.folder / "vae").fingerprint
