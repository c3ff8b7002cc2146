"""`latentddm verify`: verification and repair of a latent store."""

from __future__ import annotations

import argparse

from latentddm.cli.arguments import add_keys_argument
from latentddm.cli.encode import SELECTION_SEED
from latentddm.cli.verb import Outcome, Verb
from latentddm.engine.errors import UserError


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("store", metavar="STORE", help="a folder or a URL")
    parser.add_argument("--repair", action="store_true", help="encode damaged shards again")
    parser.add_argument("--images", metavar="SRC", help="the source, for --repair")
    add_keys_argument(parser)
    parser.add_argument("--autoencoder", metavar="REF", help="default: the one in the manifest")


def _run(arguments: argparse.Namespace) -> Outcome:
    from autoencoder.store import verify_store

    source, autoencoder = None, None
    if arguments.repair:
        from autoencoder.images import open_source, select_at_random
        from autoencoder.models import load_autoencoder
        from autoencoder.store.repair import plan_repair
        from latentddm.engine.devices import default_device

        if arguments.images is None:
            raise UserError("--repair needs the source of the images; add --images SRC.")
        plan = plan_repair(arguments.store)
        source = open_source(
            arguments.images, size=plan.preprocessing.size, sample_keys=arguments.keys
        )
        source = select_at_random(source, plan.count, SELECTION_SEED)  # of `encode --num`
        autoencoder = load_autoencoder(
            arguments.autoencoder or plan.reference, device=default_device(), dtype=plan.dtype
        )
    report = verify_store(arguments.store, source=source, autoencoder=autoencoder)
    problems = [str(problem) for problem in report.problems]
    intact = f"{report.samples} latents in {report.shards} shards are intact."
    return Outcome(
        text="\n".join([*(f"{name}: repaired" for name in report.repaired), *problems, intact]),
        values={
            "store": arguments.store,
            "samples": report.samples,
            "shards": report.shards,
            "repaired": list(report.repaired),
            "problems": problems,
        },
        failure=None if report.ok else _failure(arguments.store, problems),
    )


def _failure(store: str, problems: list[str]) -> str:
    first = problems[0].rstrip(".")
    others = f" and {len(problems) - 1} more, listed above" if len(problems) > 1 else ""
    return f"{store} is damaged ({first}){others}."


VERB = Verb(
    name="verify",
    summary="Check every byte of a latent store.",
    add_arguments=_add_arguments,
    run=_run,
    examples=("latentddm verify store", "latentddm verify store --repair --images faces/"),
)
