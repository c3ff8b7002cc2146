"""Images and autoencoders behind a URL: fetched once, checked, and then as good as local ones."""

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
    """A server of a folder with a zip and two shards; `asked` are the files sent."""
    folder = tmp_path / "served"
    folder.mkdir()
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for index in range(4):
        Image.fromarray(draw_portrait(index, 32)[0]).save(pictures / f"{index}.png")
    with zipfile.ZipFile(folder / "all.zip", "w") as archive:
        for path in sorted(pictures.iterdir()):
            archive.write(path, path.name)
    for shard in range(2):
        with tarfile.open(folder / f"{shard:03d}.tar", "w") as archive:
            for index in (2 * shard, 2 * shard + 1):
                archive.add(pictures / f"{index}.png", f"{index}.png")
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            super().do_GET()

        def log_message(self, *arguments: object) -> None:
            pass

    serve = functools.partial(Handler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("LATENTDDM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "FIRST_DELAY", 0.01)
    yield SimpleNamespace(
        url=f"http://127.0.0.1:{server.server_port}", folder=folder, asked=asked, close=server
    )
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("name", ["all.zip", "{000..001}.tar"])
def test_images_behind_a_url_are_those_of_the_local_file_and_fetched_once(
    served: SimpleNamespace, name: str
) -> None:
    there = open_source(f"{served.url}/{name}")
    here = open_source(str(served.folder / name))
    assert len(there) == len(here) == 4
    for index in range(4):
        assert there.key(index) == here.key(index)
        assert np.array_equal(there.load(index).image, here.load(index).image)
    fetched = len(served.asked)
    open_source(f"{served.url}/{name}")
    assert len(served.asked) == fetched


def test_an_original_that_has_changed_is_fetched_again(served: SimpleNamespace) -> None:
    assert len(open_source(f"{served.url}/000.tar")) == 2
    Image.fromarray(draw_portrait(9, 48)[0]).save(served.folder / "9.png")
    with tarfile.open(served.folder / "000.tar", "a") as archive:
        archive.add(served.folder / "9.png", "9.png")
        archive.add(served.folder / "9.png", "10.png")
    assert len(open_source(f"{served.url}/000.tar")) == 4


def test_secrets_of_a_url_are_not_in_its_name(served: SimpleNamespace) -> None:
    secret = served.url.replace("http://", "http://user:SECRET@") + "/all.zip?token=SECRET"
    assert "SECRET" not in open_source(secret).name


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        ("pictures/", UserError, "must name a .zip"),
        ("*.tar", UserError, "must name a .zip"),
        ("photo.png", UserError, "must name a .zip"),
        ("none.zip", JobError, "none.zip does not exist"),
    ],
)
def test_what_cannot_be_read_is_said(
    served: SimpleNamespace, name: str, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        open_source(f"{served.url}/{name}")


def test_without_a_network_the_name_and_what_to_do_are_said(served: SimpleNamespace) -> None:
    served.close.shutdown()
    served.close.server_close()
    with pytest.raises(JobError, match=r"all\.zip could not be read in .* check the network"):
        open_source(f"{served.url}/all.zip")


def test_an_autoencoder_behind_a_url_is_the_local_one(served: SimpleNamespace) -> None:
    AutoencoderKL(
        block_out_channels=(8,), norm_num_groups=4, latent_channels=3, mid_block_add_attention=False
    ).save_pretrained(served.folder / "vae")
    there = load_autoencoder(f"{served.url}/vae")
    assert there.fingerprint == load_autoencoder(served.folder / "vae").fingerprint
