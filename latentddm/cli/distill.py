"""`latentddm distill`: from a run of plain diffusion to a student of few steps."""

from __future__ import annotations

import argparse

from latentddm.cli.arguments import add_config_arguments, find_config
from latentddm.cli.verb import Outcome, Verb


def _run(arguments: argparse.Namespace) -> Outcome:
    from latentddm.engine.config import load_config, to_plain
    from latentddm.training.distillation import DistillConfig, describe, distill

    config = load_config(DistillConfig, find_config(arguments.config), arguments.overrides)
    if arguments.dry_run:
        return Outcome(describe(config), {"config": to_plain(config)})
    run = distill(config)
    return Outcome(
        f"The student is {run.path}; sample it with --steps {config.steps} --churn 1",
        {"run": str(run.path), "steps": config.steps},
    )


VERB = Verb(
    name="distill",
    summary="Distil a run of plain diffusion into few steps; run again to resume.",
    add_arguments=add_config_arguments,
    run=_run,
    examples=(
        "latentddm distill distill.yaml teacher=plain output=student steps=4",
        "latentddm distill distill.yaml teacher=plain output=student --dry-run",
    ),
    memory="loop.batch_size",
)
