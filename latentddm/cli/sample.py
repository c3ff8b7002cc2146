"""`latentddm sample`: latents, and images, from a run."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

from latentddm.cli.arguments import add_precision_argument
from latentddm.cli.verb import Outcome, Verb

_log = logging.getLogger("latentddm")


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN")
    parser.add_argument(
        "--steps",
        type=int,
        help="network evaluations (default 4, or the nearest measured; a student's own)",
    )
    parser.add_argument("--num", type=int, default=64, help="how many images (default 64)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", required=True, metavar="DIR")
    parser.add_argument("--label", type=int, help="class of the samples (default: any)")
    parser.add_argument("--guidance", type=float, default=1.0, help="above 1 strengthens the label")
    parser.add_argument("--ema", help="width or file of the average (default: the first tracked)")
    parser.add_argument("--batch-size", type=int, default=64)
    add_precision_argument(parser, "torch's own")
    parser.add_argument("--cuda-graphs", action="store_true", help="on a GPU, for small networks")
    parser.add_argument("--decode", action="store_true", help="write images as well")
    sampler = parser.add_argument_group(
        "the sampler: the run's own settings if none is given, else these defaults, which are exact"
    )
    sampler.add_argument(
        "--solver", help="ddim (default), dpmsolver++, sde-dpmsolver++, deis, unipc, heun"
    )
    sampler.add_argument("--churn", type=float, help="0 DDIM (default) ... 1 DDPM")
    sampler.add_argument(
        "--xi-scale",
        type=_scales,
        metavar="N",
        help="factor of xi (default 1), or N,N... by evaluation, or FIRST..LAST evenly",
    )
    sampler.add_argument(
        "--noise-scale", type=float, metavar="N", help="factor of the noise at t = 1 (default 1)"
    )
    sampler.add_argument(
        "--grid",
        choices=("uniform", "log_snr", "power"),
        metavar="GRID",
        help="uniform, log_snr or power (default: the solver's own)",
    )
    sampler.add_argument("--power", type=float, help="exponent of the power grid (default 0.5)")
    sampler.add_argument("--safety", type=float, help="distance from t = 0 and 1 (default 0)")


def _scales(text: str) -> Any:
    from latentddm.inference.xi_scale import read_scales

    try:
        return read_scales(text, ",")
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither numbers with commas nor FIRST..LAST"
        ) from None


def _run(arguments: argparse.Namespace) -> Outcome:
    from latentddm.engine.devices import default_device
    from latentddm.engine.errors import UserError
    from latentddm.inference.best_settings import FIELDS
    from latentddm.inference.generator import Generator
    from latentddm.inference.samples import write_samples
    from latentddm.inference.settings import SamplingConfig
    from latentddm.inference.xi_scale import scales_of

    generator = Generator.load(
        arguments.run,
        default_device(),
        ema=arguments.ema,
        precision=arguments.precision,
        cuda_graphs=arguments.cuda_graphs,
    )
    steps = generator.run_settings.steps if arguments.steps is None else arguments.steps
    given = {name: getattr(arguments, name) for name in FIELDS}
    if given["xi_scale"] is not None:
        solver = given["solver"] or SamplingConfig().solver
        try:
            given["xi_scale"] = scales_of(given["xi_scale"], solver, steps)
        except ValueError as error:  # an unknown solver
            raise UserError(str(error)) from None
    config = generator.settings(
        steps,
        label=arguments.label,
        guidance=arguments.guidance,
        seed=arguments.seed,
        ema=arguments.ema,
        batch_size=arguments.batch_size,
        **{name: value for name, value in given.items() if value is not None},
    )
    if all(value is None for value in given.values()):
        _log.info("The settings are %s.", generator.run_settings.describe(steps))
    output = Path(arguments.output)
    run = Path(arguments.run)
    written = write_samples(generator, run, arguments.num, config, output, arguments.decode)
    return Outcome(
        f"{arguments.num} samples are in {written}",
        {"samples": arguments.num, "output": str(written)},
    )


VERB = Verb(
    name="sample",
    summary="Draw samples from a trained run, by its own settings if none are given.",
    add_arguments=_add_arguments,
    run=_run,
    examples=(
        "latentddm sample run --steps 4 --num 64 --output samples --decode",
        "latentddm sample run --solver unipc --grid power --xi-scale 1..0.25 --output samples",
    ),
)
