"""`latentddm encode`: encoding of images into a latent store."""

from __future__ import annotations

import argparse

from latentddm.cli.arguments import (
    AUTOENCODER_HELP,
    SOURCE_HELP,
    add_keys_argument,
    add_process_arguments,
    rank_and_world_size,
)
from latentddm.cli.verb import Outcome, Verb
from latentddm.engine.errors import UserError

SELECTION_SEED = 0
"""The seed of the random images of --num, for a repair to find the same."""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", required=True, metavar="SRC", help=SOURCE_HELP)
    parser.add_argument("--autoencoder", required=True, metavar="REF", help=AUTOENCODER_HELP)
    parser.add_argument("--output", required=True, metavar="STORE")
    parser.add_argument("--size", type=int, default=256, help="pixels a side (default 256)")
    parser.add_argument("--num", type=int, help="N random images (default: all)")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, help="image decoding processes")
    parser.add_argument("--moments", action="store_true", help="store mean and log variance")
    parser.add_argument("--flips", action="store_true", help="store mirrored views as well")
    parser.add_argument(
        "--decompress",
        metavar="DIR",
        help="first write plain copies of .tar.gz shards to DIR, once",
    )
    add_keys_argument(parser)
    parser.add_argument("--strict", action="store_true", help="stop at an unreadable image")
    add_process_arguments(parser)


def _run(arguments: argparse.Namespace) -> Outcome:
    from autoencoder.images import Preprocessing, left_out, open_source, select_at_random
    from autoencoder.models import load_autoencoder
    from autoencoder.remote import local_output
    from autoencoder.sources.formats import describe_left_out
    from autoencoder.store import encode_store
    from latentddm.engine.devices import default_device, encoding_dtype

    output, device = local_output(arguments.output), default_device()
    source = open_source(
        arguments.images,
        size=arguments.size,
        sample_keys=arguments.keys,
        decompress=arguments.decompress,
    )
    if arguments.num is not None and arguments.num < 1:
        raise UserError(f"--num is {arguments.num}; give 1 or more.")
    source = select_at_random(source, arguments.num, seed=SELECTION_SEED)
    rank, world_size = rank_and_world_size(arguments)
    manifest = encode_store(
        source,
        load_autoencoder(arguments.autoencoder, device=device, dtype=encoding_dtype(device)),
        output,
        preprocessing=Preprocessing(size=arguments.size),
        batch_size=arguments.batch_size,
        workers=arguments.workers,
        moments=arguments.moments,
        flips=arguments.flips,
        strict=arguments.strict,
        rank=rank,
        world_size=world_size,
    )
    values = {"store": arguments.output, "complete": manifest is not None}
    if manifest is None:
        text = "The shards of this process are finished; shards of other processes are missing."
        return Outcome(text, values)
    lines = [
        f"{arguments.output} holds {manifest.samples} latents in {len(manifest.shards)} shards."
    ]
    if manifest.unreadable:
        lines.append(
            f"{len(manifest.unreadable)} unreadable images are listed in "
            f"{output / 'manifest.json'}."
        )
    skipped = left_out(source)
    if skipped:
        lines.append(describe_left_out(skipped))
    counts = {
        "samples": manifest.samples,
        "shards": len(manifest.shards),
        "unreadable": len(manifest.unreadable),
        "left_out": sum(kind.files for kind in skipped),
    }
    return Outcome("\n".join(lines), values | counts)


VERB = Verb(
    name="encode",
    summary="Encode images into a latent store; run again to resume.",
    add_arguments=_add_arguments,
    run=_run,
    examples=(
        "latentddm encode --images faces/ --autoencoder stabilityai/sd-vae-ft-mse --output store",
        "latentddm encode --images 'shards/{000..009}.tar' --autoencoder vae/ --output store",
    ),
)
