"""`latentddm train`: from a latent store to a run."""

from __future__ import annotations

import argparse

from latentddm.cli.arguments import add_config_arguments, find_config
from latentddm.cli.verb import Outcome, Verb


def _run(arguments: argparse.Namespace) -> Outcome:
    from latentddm.engine.config import load_config, to_plain
    from latentddm.training.config import TrainConfig
    from latentddm.training.generator import describe, train

    config = load_config(TrainConfig, find_config(arguments.config), arguments.overrides)
    if arguments.dry_run:
        return Outcome(describe(config), {"config": to_plain(config)})
    run = train(config)
    return Outcome(f"The trained run is {run.path}", {"run": str(run.path)})


VERB = Verb(
    name="train",
    summary="Train a generator; run again to resume.",
    add_arguments=add_config_arguments,
    run=_run,
    examples=(
        "latentddm train faces128.yaml store=store output=run",
        "latentddm train faces128.yaml store=store output=run loop.batch_size=128 --dry-run",
        "accelerate launch -m latentddm train faces128.yaml store=store output=run",
    ),
    memory="loop.batch_size or phases.N.objective.draws",
)
