"""The autoencoder of the demo: a pretrained one, or the embedded one, trained on the images."""

from __future__ import annotations

import logging

import torch

from autoencoder.metrics import psnr
from autoencoder.models import Autoencoder, check_reconstruction, latent_edge, load_autoencoder
from autoencoder.models.hub import available_at_once
from autoencoder.training.network import start_reference
from latentddm.demo.config import AUTO, DemoConfig
from latentddm.engine.devices import default_device

HUB_TINY, HUB_TINY_LICENCE = "madebyollin/taesd", "MIT licence"
BLURRED_PSNR = 23.0  # of reconstructions, in dB; below, photographs are visibly without detail
REMEDY = (
    f"a pretrained one keeps more: --autoencoder REF, a folder of diffusers, a hub id such as "
    f"{HUB_TINY}, or weights of the TAESD family"
)

_log = logging.getLogger("latentddm")


def choose_autoencoder(pretrained: str | None, embedded_fits: bool) -> str | None:
    """The reference of a pretrained autoencoder; None for the embedded one.

    pretrained: of the config. embedded_fits: the images are those that the embedded one is for.
    """
    if pretrained != AUTO:
        return pretrained
    if embedded_fits or not available_at_once(HUB_TINY):
        return None
    return HUB_TINY


def load_chosen(reference: str | None, config: DemoConfig) -> Autoencoder:
    """The pretrained autoencoder, or the embedded one as it is before its training here.

    UserError if it does not exist, or its factor does not divide the size of the images.
    """
    chosen = start_reference(str(config.autoencoder.start)) if reference is None else reference
    autoencoder = load_autoencoder(chosen, device=default_device())
    latent_edge(autoencoder, config.size)
    return autoencoder


def announce(reference: str | None, autoencoder: Autoencoder, pixels: torch.Tensor) -> None:
    """Log what the autoencoder keeps of some of the images, uint8 [N, S, S, 3].

    UserError for a pretrained one whose reconstructions resemble nothing.
    """
    if reference is None:
        _log.warning("%s", embedded_sentence(autoencoder, pixels))
        return
    kept = check_reconstruction(autoencoder, pixels)
    licence = f" ({HUB_TINY_LICENCE})" if reference == HUB_TINY else ""
    _log.info(
        "Autoencoder %s%s: its reconstructions of %d of the images have a PSNR of %.1f dB.",
        *(autoencoder.reference, licence, len(pixels), kept),
    )


def embedded_sentence(autoencoder: Autoencoder, pixels: torch.Tensor) -> str:
    """The PSNR of the embedded autoencoder on the user's images, its meaning and the remedy."""
    reconstructions = autoencoder.reconstruct(pixels).cpu()
    kept = float(psnr(pixels, reconstructions).mean())
    return (
        f"Autoencoder: the embedded one, made for drawn portraits; its reconstructions of "
        f"{len(pixels)} of the images have a PSNR of {kept:.1f} dB, before its training on them, "
        f"which adds a few (below about {BLURRED_PSNR:.0f} dB every picture is blurred, real or "
        f"drawn); {REMEDY}."
    )


def warning_of(kept: float, trained_here: bool) -> str:
    """The report's warning about the PSNR of the reconstructions, in dB; empty for a good one."""
    if kept >= BLURRED_PSNR:
        return ""
    remedy = REMEDY if trained_here else "another autoencoder or a larger size keeps more"
    return (
        f"The autoencoder's reconstructions of these pictures have a PSNR of {kept:.1f} dB. Below "
        f"about {BLURRED_PSNR:.0f} dB every picture is blurred, real or drawn, however good the "
        f"generator; {remedy}."
    )
