"""Autoencoders on the Hugging Face hub: the necessary files alone, from the cache if possible."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

from latentddm.engine.errors import UserError

HUB_REFERENCE = re.compile(r"([\w.-]+/[\w.-]+)(?::([\w./-]+))?")
FOLDERS = ("", "vae/", "vqvae/", "autoencoder/")
WEIGHTS = ("diffusion_pytorch_model*.safetensors*", "*encoder.safetensors", "*decoder.safetensors")
CONFIG_NAME, WEIGHTS_NAME = "config.json", "diffusion_pytorch_model.safetensors"
PROBE_SECONDS, DOWNLOAD_SECONDS = 3.0, 30.0  # of `available_at_once`
PICKLED_WEIGHTS = ("diffusion_pytorch_model*.bin", "*encoder.pth", "*decoder.pth")


def is_hub_reference(reference: str) -> bool:
    """Whether `reference` has the form owner/name or owner/name:subfolder."""
    return HUB_REFERENCE.fullmatch(reference) is not None


def download(reference: str) -> Path:
    """The local folder of the autoencoder owner/name[:subfolder] of the hub.

    A small autoencoder that is in the cache is not looked up again. UserError if the hub is
    unreachable or has no such autoencoder.
    """
    match = HUB_REFERENCE.fullmatch(reference)
    if match is None:
        raise UserError(f"{reference} is not a hub id; give owner/name or owner/name:subfolder.")
    repository, subfolder = match[1], match[2]
    if not subfolder and (cached := _cached(repository)):
        return cached
    folders = (f"{subfolder.strip('/')}/",) if subfolder else FOLDERS
    folder = _snapshot(repository, folders, WEIGHTS)
    if not any(folder.glob("**/*.safetensors")):
        folder = _snapshot(repository, folders, PICKLED_WEIGHTS)
    return folder / subfolder if subfolder else folder


def available_at_once(repository: str) -> bool:
    """Whether the autoencoder owner/name is in the cache, or could be downloaded just now.

    Never blocks for long: an unreachable hub is given up after PROBE_SECONDS, a download, made by a
    process of its own, after DOWNLOAD_SECONDS. No attempt where the hub is switched off
    (HF_HUB_OFFLINE).
    """
    from huggingface_hub import constants

    if _cached(repository):
        return True
    if constants.HF_HUB_OFFLINE or not _answers(constants.ENDPOINT, PROBE_SECONDS):
        return False
    program = (
        "import sys, huggingface_hub as hub\n"
        "hub.snapshot_download(sys.argv[1], allow_patterns=sys.argv[2:])"
    )
    command = [sys.executable, "-c", program, repository, CONFIG_NAME, WEIGHTS_NAME]
    with suppress(subprocess.TimeoutExpired):
        subprocess.run(command, capture_output=True, timeout=DOWNLOAD_SECONDS)
    return _cached(repository) is not None


def _cached(repository: str) -> Path | None:
    """The folder of the cache with the autoencoder owner/name, if it is whole."""
    from huggingface_hub import try_to_load_from_cache

    config, weights = (
        try_to_load_from_cache(repository, name) for name in (CONFIG_NAME, WEIGHTS_NAME)
    )
    return Path(config).parent if isinstance(config, str) and isinstance(weights, str) else None


def _answers(address: str, seconds: float) -> bool:
    """Whether a server answers anything within `seconds`.

    In a thread: the look-up of a name has no time limit of its own.
    """
    answered = threading.Event()

    def ask() -> None:
        try:
            urllib.request.urlopen(
                urllib.request.Request(address, method="HEAD"), timeout=seconds
            ).close()
        except urllib.error.HTTPError:
            pass  # an answer
        except (OSError, ValueError):
            return
        answered.set()

    threading.Thread(target=ask, name="probe of the hub", daemon=True).start()
    return answered.wait(seconds)


def _snapshot(repository: str, folders: tuple[str, ...], files: tuple[str, ...]) -> Path:
    import huggingface_hub

    try:
        return Path(
            huggingface_hub.snapshot_download(
                repository,
                allow_patterns=[
                    f"{folder}{file}" for folder in folders for file in ("config.json", *files)
                ],
                ignore_patterns=["*.fp16.*", "*non_ema*", "*text_encoder*"],
            )
        )
    except Exception as error:  # the hub client raises errors of several packages
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UserError(
            f"{repository} is not a local folder, and not available from the Hugging Face hub "
            f"({reason}); check the path or the id, and the network."
        ) from error
