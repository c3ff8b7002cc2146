"""`latentddm import-latents`: import of webdataset shards of latents as a latent store."""

from __future__ import annotations

import argparse

from latentddm.cli.arguments import AUTOENCODER_HELP
from latentddm.cli.verb import Outcome, Verb


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shards", metavar="SHARDS", help="tars of npy [C, h, w] (and cls) members")
    parser.add_argument("--autoencoder", required=True, metavar="REF", help=AUTOENCODER_HELP)
    parser.add_argument("--output", required=True, metavar="STORE")
    parser.add_argument(
        "--scale-factor", type=float, default=1.0, help="factor in the latents (default 1)"
    )
    parser.add_argument(
        "--no-check", action="store_true", help="do not decode and encode a few latents first"
    )


def _run(arguments: argparse.Namespace) -> Outcome:
    from autoencoder.models import load_autoencoder
    from autoencoder.remote import local_output
    from autoencoder.store import import_latents
    from latentddm.engine.devices import default_device

    output = local_output(arguments.output)
    manifest = import_latents(
        arguments.shards,
        load_autoencoder(arguments.autoencoder, device=default_device()),
        output,
        scale_factor=arguments.scale_factor,
        check=not arguments.no_check,
    )
    return Outcome(
        f"{arguments.output} holds {manifest.samples} latents in {len(manifest.shards)} shards.",
        {
            "store": arguments.output,
            "samples": manifest.samples,
            "shards": len(manifest.shards),
            "labelled": manifest.labelled,
        },
    )


VERB = Verb(
    name="import-latents",
    summary="Import webdataset shards of latents as a latent store.",
    add_arguments=_add_arguments,
    run=_run,
    examples=(
        "latentddm import-latents 'latents/{000..099}.tar' --autoencoder vae/ --output store",
        "latentddm import-latents latents --autoencoder vae/ --output store --scale-factor 0.18215",
    ),
)
