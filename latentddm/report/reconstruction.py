"""The output folder of `latentddm evaluate-autoencoder`: JSON, Markdown and images."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from autoencoder.image_io import image_grid, save_image
from autoencoder.latent_statistics import LatentSummary
from latentddm.engine.atomic_io import make_folder, write_json, write_text
from latentddm.engine.run import require_new_folder
from latentddm.evaluation.reconstruction import Reconstructions

ERROR_GAIN = 4
FILES = ("evaluation.json", "evaluation.md", "reconstructions.png")


def write_reconstruction_report(folder: Path, measured: Reconstructions) -> None:
    """Write evaluation.json, evaluation.md and reconstructions.png, or replace earlier ones.

    UserError if the folder is not empty and holds no earlier evaluation.
    """
    prepare_report(folder)
    save_image(folder / FILES[2], comparison(measured.originals, measured.reconstructions))
    write_text(folder / FILES[1], _markdown(measured))
    write_json(folder / FILES[0], measured.to_json())


def prepare_report(folder: Path) -> None:
    """Make the folder of a report; UserError if it holds something else than an earlier one."""
    if not (folder / FILES[0]).is_file():
        require_new_folder(folder, "an evaluation of an autoencoder")
    make_folder(folder)


def comparison(originals: np.ndarray, reconstructions: np.ndarray) -> np.ndarray:
    """Originals, reconstructions and errors, a row each: uint8 [k,S,S,3] twice -> uint8 [H,W,3].

    Errors are absolute differences times 4, clipped.
    """
    errors = np.abs(originals.astype(np.int16) - reconstructions) * ERROR_GAIN
    rows = [originals, reconstructions, errors.clip(0, 255).astype(np.uint8)]
    return image_grid(np.concatenate(rows), columns=len(originals))


def _markdown(measured: Reconstructions) -> str:
    about = measured.autoencoder
    lines = [
        f"# {about['reference']}",
        "",
        f"Factor {about['factor']}, {about['latent_channels']} latent channels, computed in "
        f"{about['dtype']}, {about['fingerprint']}.",
        "",
        "![originals, reconstructions, errors](reconstructions.png)",
        "",
        f"*From top to bottom: originals, reconstructions, absolute differences times "
        f"{ERROR_GAIN}.*",
        "",
        "| metric | value | 95 % interval | features | images |",
        "|---|---|---|---|---|",
    ]
    for name, result in measured.results.items():
        protocol = result.protocol
        lines.append(
            f"| {name} | {result.value:.4g} | {result.low:.4g} to {result.high:.4g} "
            f"| {protocol.features} | {protocol.n} of {protocol.reference} at {protocol.size} px |"
        )
    if measured.unreadable:
        lines += ["", f"{len(measured.unreadable)} images could not be read (evaluation.json)."]
    return "\n".join([*lines, "", "## Latents", "", *_latents(measured.latents), ""])


def _latents(summary: LatentSummary) -> list[str]:
    """Table of moments and correlations by channel."""
    lines = [
        "| channel | mean | std | excess kurtosis | correlation with the right neighbour "
        "| with the lower neighbour | largest with another channel |",
        "|---|---|---|---|---|---|---|",
    ]
    for channel in range(len(summary.mean)):
        others = [
            value for other, value in enumerate(summary.channels[channel]) if other != channel
        ]
        largest = max(others, key=abs, default=0.0)
        values = (
            summary.mean[channel],
            summary.std[channel],
            summary.kurtosis[channel],
            summary.right[channel],
            summary.below[channel],
            largest,
        )
        lines.append(f"| {channel} | " + " | ".join(f"{value:.3f}" for value in values) + " |")
    return lines
