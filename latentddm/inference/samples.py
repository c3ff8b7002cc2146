"""Samples of a run in a folder: the stage behind `latentddm sample`."""

from __future__ import annotations

from pathlib import Path

from autoencoder.decode import decode_files
from autoencoder.latent_files import save_latents
from latentddm.engine.config import to_plain
from latentddm.engine.run import claim_folder
from latentddm.inference.generator import Generator
from latentddm.inference.precision import arithmetic, decoder_dtype
from latentddm.inference.settings import SamplingConfig

LATENTS_NAME, SETTINGS_NAME = "latents.safetensors", "samples.json"


def write_samples(
    generator: Generator,
    run: Path,
    count: int,
    config: SamplingConfig,
    output: Path,
    decode: bool = False,
) -> Path:
    """Draw `count` samples of the generator of a run into `output`; returns what holds them.

    latents.safetensors holds the raw latents, samples.json the settings; with `decode`, the images
    are in output/images. A second call with the same settings finishes an interrupted one.
    UserError if the folder holds something else.
    """
    device, precision = generator.network.device, generator.precision
    generator.check(count, config)  # before the folder is claimed for these settings
    settings = {"run": str(run), "images_seen": generator.images, "count": count}
    settings |= {} if precision is None else {"precision": precision}
    claim_folder(output, SETTINGS_NAME, settings | to_plain(config), "samples")
    latents = generator.draw(count, config, show_progress=True)
    generator.space.write(output)
    path = output / LATENTS_NAME
    save_latents(path, latents, generator.space.fingerprint)
    if not decode:
        return path
    autoencoder = generator.space.load_autoencoder(device, dtype=decoder_dtype(precision, device))
    with arithmetic(precision, device.type):
        decode_files(path, output / "images", autoencoder, batch_size=config.batch_size)
    return output / "images"
