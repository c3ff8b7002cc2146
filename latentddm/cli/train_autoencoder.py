"""`latentddm train-autoencoder`: training of an autoencoder on images."""

from __future__ import annotations

import argparse

from latentddm.cli.arguments import add_config_arguments, find_config
from latentddm.cli.verb import Outcome, Verb


def _run(arguments: argparse.Namespace) -> Outcome:
    from autoencoder.training import AutoencoderConfig, describe, train_autoencoder
    from latentddm.engine.config import load_config, to_plain

    config = load_config(AutoencoderConfig, find_config(arguments.config), arguments.overrides)
    if arguments.dry_run:
        return Outcome(describe(config), {"config": to_plain(config)})
    trained = train_autoencoder(config)
    return Outcome(f"The trained autoencoder is in {trained}", {"autoencoder": str(trained)})


VERB = Verb(
    name="train-autoencoder",
    summary="Train an autoencoder; run again to resume.",
    add_arguments=add_config_arguments,
    run=_run,
    examples=("latentddm train-autoencoder portraits_autoencoder.yaml output=vae",),
    memory="loop.batch_size or size",
)
