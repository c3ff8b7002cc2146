"""Serves the page of a run."""

from __future__ import annotations

import errno
import importlib.util
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from latentddm.engine.errors import UserError

HOST, PORT = "127.0.0.1", 7860
LARGEST_UPLOAD = 1024  # bytes


@contextmanager
def serving(run: Path, host: str = HOST, port: int = PORT, ema: str | None = None) -> Iterator[str]:
    """Serve the page of `run` at host:port, with the average `ema`; yields its address.

    UserError if gradio is missing, the run cannot be used, or the port is taken.
    """
    if importlib.util.find_spec("gradio") is None:
        raise UserError("The page needs the package gradio; run `pip install 'latentddm[play]'`.")
    require_free_port(host, port)
    from latentddm.play.renderer import Renderer

    renderer = Renderer.open(run, ema)
    from starlette.middleware import Middleware

    from latentddm.play.guard import Guard, allowed_hosts
    from latentddm.play.page import STYLE, build_page, theme  # imports gradio: seconds

    guard = Middleware(Guard, hosts=allowed_hosts(host))  # type: ignore[arg-type]
    with TemporaryDirectory(prefix="latentddm-play-") as downloads:
        page = build_page(renderer, Path(downloads))
        page.launch(
            server_name=host,
            server_port=port,
            share=False,
            quiet=True,
            show_error=True,
            prevent_thread_lock=True,
            css_paths=[STYLE],
            theme=theme(),
            footer_links=[],
            app_kwargs={"middleware": [guard]},
            max_file_size=LARGEST_UPLOAD,  # the page takes no files, but gradio does
        )
        try:
            yield f"http://{host}:{port}"
        finally:
            page.close(verbose=False)


def require_free_port(host: str, port: int) -> None:
    """UserError unless a server may listen at host:port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OverflowError:
            raise UserError(f"The port must lie in 0 to 65535, not {port}.") from None
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise UserError(
                    f"Port {port} of {host} is taken; give another one with --port."
                ) from None
            raise UserError(f"{host}:{port} cannot be served ({error.strerror}).") from None
