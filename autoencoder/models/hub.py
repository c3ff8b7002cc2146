"""Autoencoders on the Hugging Face hub: the necessary files alone, from the cache if possible."""

from __future__ import annotations

import re
from pathlib import Path

from latentddm.engine.errors import UserError

HUB_REFERENCE = re.compile(r"([\w.-]+/[\w.-]+)(?::([\w./-]+))?")
FOLDERS = ("", "vae/", "vqvae/", "autoencoder/")
WEIGHTS = ("diffusion_pytorch_model*.safetensors*", "*encoder.safetensors", "*decoder.safetensors")
PICKLED_WEIGHTS = ("diffusion_pytorch_model*.bin", "*encoder.pth", "*decoder.pth")


def is_hub_reference(reference: str) -> bool:
    """Whether `reference` has the form owner/name or owner/name:subfolder."""
    return HUB_REFERENCE.fullmatch(reference) is not None


def download(reference: str) -> Path:
    """The local folder of the autoencoder owner/name[:subfolder] of the hub.

    UserError if the hub is unreachable or has no such autoencoder.
    """
    match = HUB_REFERENCE.fullmatch(reference)
    if match is None:
        raise UserError(f"{reference} is not a hub id; give owner/name or owner/name:subfolder.")
    repository, subfolder = match[1], match[2]
    folders = (f"{subfolder.strip('/')}/",) if subfolder else FOLDERS
    folder = _snapshot(repository, folders, WEIGHTS)
    if not any(folder.glob("**/*.safetensors")):
        folder = _snapshot(repository, folders, PICKLED_WEIGHTS)
    return folder / subfolder if subfolder else folder


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
