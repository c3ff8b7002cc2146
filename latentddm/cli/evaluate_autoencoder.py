"""`latentddm evaluate-autoencoder`: evaluation of an autoencoder's reconstructions."""

from __future__ import annotations

import argparse
from pathlib import Path

from latentddm.cli.arguments import AUTOENCODER_HELP, SOURCE_HELP, add_keys_argument
from latentddm.cli.verb import Outcome, Verb


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("autoencoder", metavar="REF", help=AUTOENCODER_HELP)
    parser.add_argument("--images", required=True, metavar="SRC", help=SOURCE_HELP)
    parser.add_argument(
        "--metrics",
        default="psnr,ssim,lpips,rfid",
        help="of psnr, ssim, lpips, rfid, frechet (default: the first four)",
    )
    parser.add_argument("--lpips-weights", metavar="FILE", help="AlexNet's (default: downloaded)")
    add_keys_argument(parser)
    parser.add_argument("--num", type=int, help="number of random images (default: all)")
    parser.add_argument("--size", type=int, default=256, help="pixels a side (default 256)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--output", metavar="DIR", help="folder for results, latents and images")


def _run(arguments: argparse.Namespace) -> Outcome:
    from autoencoder.models import load_autoencoder
    from latentddm.engine.devices import default_device
    from latentddm.evaluation.reconstruction import ReconstructionOptions, evaluate_autoencoder
    from latentddm.report.reconstruction import prepare_report, write_reconstruction_report

    options = ReconstructionOptions(
        metrics=arguments.metrics.split(","),
        num=arguments.num,
        size=arguments.size,
        seed=arguments.seed,
        sample_keys=arguments.keys,
        batch_size=arguments.batch_size,
        lpips_weights=arguments.lpips_weights,
        show_progress=True,
    )
    if arguments.output:
        prepare_report(Path(arguments.output))  # a wrong folder is refused before the measuring
    autoencoder = load_autoencoder(arguments.autoencoder, device=default_device())
    measured = evaluate_autoencoder(autoencoder, arguments.images, options)
    lines = [str(result) for result in measured.results.values()]
    if measured.unreadable:
        lines.append(f"{len(measured.unreadable)} images are unreadable and left out.")
    if arguments.output:
        write_reconstruction_report(Path(arguments.output), measured)
        lines.append(f"The evaluation is in {Path(arguments.output) / 'evaluation.md'}")
    return Outcome("\n".join(lines), measured.to_json())


VERB = Verb(
    name="evaluate-autoencoder",
    summary="Evaluate an autoencoder's reconstructions of images.",
    add_arguments=_add_arguments,
    run=_run,
    examples=(
        "latentddm evaluate-autoencoder vae/ --images faces/ --num 5000 --output evaluation",
        "latentddm evaluate-autoencoder vae/ --images faces/ --metrics psnr,ssim,frechet",
    ),
)
