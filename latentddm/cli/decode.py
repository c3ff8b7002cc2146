"""`latentddm decode`: decoding of latents to image files."""

from __future__ import annotations

import argparse
from pathlib import Path

from latentddm.cli.arguments import (
    add_precision_argument,
    add_process_arguments,
    rank_and_world_size,
)
from latentddm.cli.verb import Outcome, Verb
from latentddm.engine.errors import UserError


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "latents", metavar="LATENTS", help="a .safetensors or .npy file, or a latent store"
    )
    parser.add_argument("--output", required=True, metavar="DIR")
    parser.add_argument("--autoencoder", metavar="REF", help="default: that of the latents")
    parser.add_argument("--format", choices=("png", "jpeg", "webp", "webdataset"), default="png")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument(
        "--tile",
        type=int,
        metavar="N",
        help="latents a side of a tile, for larger images; bounds the memory",
    )
    add_precision_argument(parser, "bf16 on a GPU that has it, else float32")
    add_process_arguments(parser)


def _run(arguments: argparse.Namespace) -> Outcome:
    from autoencoder.decode import decode_files
    from autoencoder.models import load_autoencoder
    from autoencoder.remote import local_output
    from latentddm.engine.devices import default_device
    from latentddm.inference.precision import arithmetic, check_precision, decoder_dtype

    output = local_output(arguments.output)
    device, precision = default_device(), arguments.precision
    check_precision(precision, device)
    dtype = decoder_dtype(precision, device)
    reference = arguments.autoencoder or _autoencoder_of(arguments.latents)
    autoencoder = load_autoencoder(reference, device=device, dtype=dtype)
    rank, world_size = rank_and_world_size(arguments)
    with arithmetic(precision, device.type):
        made = decode_files(
            arguments.latents,
            output,
            autoencoder,
            format=arguments.format,
            batch_size=arguments.batch_size,
            tile=arguments.tile,
            rank=rank,
            world_size=world_size,
        )
    return Outcome(
        f"The images are in {arguments.output}", {"output": arguments.output, "new_images": made}
    )


def _autoencoder_of(reference: str) -> str:
    """The autoencoder recorded in the latents, or else in a run's file beside them."""
    from autoencoder.latent_files import open_latents
    from latentddm.inference.latent_space import FILE_NAME, LatentSpace

    named = open_latents(reference).autoencoder
    if named is not None:
        return named
    folder = Path(reference).parent
    if not (folder / FILE_NAME).is_file():
        raise UserError(f"The autoencoder of {reference} is not recorded; give --autoencoder REF.")
    return LatentSpace.read(folder).autoencoder


VERB = Verb(
    name="decode",
    summary="Decode latents to image files; run again to resume.",
    add_arguments=_add_arguments,
    run=_run,
    examples=(
        "latentddm decode samples/latents.safetensors --output images",
        "latentddm decode store --output images --format webp",
        "latentddm decode latents.npy --autoencoder vae/ --format webdataset --output shards",
    ),
)
