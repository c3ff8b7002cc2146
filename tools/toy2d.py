"""Distributional diffusion in the plane: example, test and picture at once.

    python tools/toy2d.py --output toy2d [--target mixture|checkerboard|both] [--seeds 3] [--quick]

Plain diffusion learns E[x_0 | x_t], a point. The distributional diffusion model (DDM) learns
p(x_0 | x_t): it draws x_0 from noise xi, and is trained with the energy score instead of the
squared error. Then a sampler with few steps is as good as one with many. In the plane the exact
posterior is known, so that every figure can be checked. Beside them stand other few-step models
without a teacher: shortcut models, mean flows, inductive moment matching. In reading order:

    toy2d_targets.py   two distributions with their exact posteriors
    toy2d_network.py   one small network for all models
    toy2d_training.py  one loop for all models: only the objective differs
    toy2d_measures.py  the squared MMD to the target against the number of network evaluations
                       (NFE), and draws of x_0 at one x_t against the exact posterior
    toy2d_tables.py, toy2d_pictures.py  the output

It prints the tables and writes table.json, samples.png, posterior.png and spread.png. With several
seeds, figures are means and their deviations. With --equal-seconds there is a second table, for
which every model trains for as long as the slowest one took. Networks are kept: the same command,
after a stop, trains those that are missing.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from command_line import exit_code, list_of
from torch import Tensor
from toy2d_measures import (
    LearntFlowMap,
    Sizes,
    posterior_distances,
    posterior_spread,
    squared_mmds,
)
from toy2d_network import ToyDenoiser
from toy2d_pictures import draw_posteriors, draw_samples, draw_spread
from toy2d_tables import deviations, means, table
from toy2d_targets import Checkerboard, GaussianMixture, Target
from toy2d_training import MODELS, Training, train_once

from latentddm.diffusion.sampling import Denoiser
from latentddm.engine.atomic_io import make_folder, write_json
from latentddm.engine.errors import UserError

TARGETS: dict[str, Target] = {"mixture": GaussianMixture(), "checkerboard": Checkerboard()}

# NFE: (plain diffusion, DDM), the squared MMD in the authors' replies to their reviewers. The scale
# of their board is not given. On [-1, 1]^2 an exact mean denoiser has 1.1e-2, 2.5e-3 and
# 2.2e-4 at NFE 5, 10 and 50, and the floor is 2.0e-4: the nearest of the usual scales.
PUBLISHED = {
    "checkerboard": {
        5: (7.00e-3, 1.57e-4),
        10: (2.10e-3, 1.96e-4),
        50: (2.70e-4, 1.55e-4),
        100: (1.96e-4, 2.00e-4),
        1000: (1.71e-4, 1.83e-4),
    }
}

QUICK = (
    Training(points=100_000, warmup_points=10_000),
    Sizes(evaluations=(1, 2, 5, 10, 50, 100), samples=1024, repetitions=1, conditions=32, draws=64),
)


@dataclass(frozen=True)
class Study:
    """The trained networks of one target and their measures."""

    networks: dict[str, ToyDenoiser]
    points: dict[tuple[str, int], Tensor]  # samples by (model, NFE)
    report: dict[str, Any]  # for table.json


def study(
    folder: Path,
    target: Target,
    training: Training,
    sizes: Sizes,
    seed: int,
    equal_seconds: bool = False,
) -> Study:
    """Train all models on a target, or read those in `folder`, and measure them."""
    networks, took = {}, {}
    for name in MODELS:
        networks[name], took[name] = train_once(folder, target, name, training, seed)
    ddm = networks["DDM"].denoise
    rows, points = squared_mmds(target, _as_sampled(networks), sizes, seed)
    for row in rows:
        published = PUBLISHED.get(target.name, {}).get(int(row["nfe"]))
        if published and row["bandwidth"] == 1.0:
            row |= {"published diffusion": published[0], "published DDM": published[1]}
    report = {
        "squared_mmd": rows,
        "posterior": posterior_distances(target, ddm, sizes, seed),
        "spread": posterior_spread(target, ddm, sizes, seed),
        "training": took,
    }
    if equal_seconds:
        report["equal_seconds"] = by_seconds(folder, target, training, took, sizes, seed)
    return Study(networks, points, report)


def by_seconds(
    folder: Path,
    target: Target,
    training: Training,
    took: Mapping[str, Mapping[str, float]],
    sizes: Sizes,
    seed: int,
) -> dict[str, Any]:
    """The same, but that every model trains for as long as the slowest one took.

    took: the seconds of the trainings on equal numbers of points, which are in `folder`.
    """
    longest = max(spent["cpu_seconds"] for spent in took.values())
    longer = folder / "equal-seconds"
    make_folder(longer)
    networks, spent = {}, {}
    for name in MODELS:
        own = took[name]["cpu_seconds"]
        slowest = own == longest
        more = training if slowest else training.lengthened(longest / own)
        where = folder if slowest else longer
        networks[name], seconds = train_once(where, target, name, more, seed)
        spent[name] = {**seconds, "points": more.points}
    rows, _ = squared_mmds(target, _as_sampled(networks), sizes, seed)
    return {"squared_mmd": rows, "training": spent}


def _as_sampled(networks: Mapping[str, ToyDenoiser]) -> dict[str, Denoiser | LearntFlowMap]:
    return {name: _sampled(network) for name, network in networks.items()}


def _sampled(network: ToyDenoiser) -> Denoiser | LearntFlowMap:
    """A network as it is sampled."""
    if network.flow_map is None:
        return network.denoise
    return LearntFlowMap(network.step_to, network.flow_map)


def _study_all(
    folder: Path,
    names: Sequence[str],
    seeds: Sequence[int],
    training: Training,
    sizes: Sizes,
    processes: int,
    equal_seconds: bool,
) -> dict[str, list[Study]]:
    """The studies of each target, by seed, in so many processes of one thread.

    A second thread of a process costs more than it gives here.
    """
    context = multiprocessing.get_context("spawn")
    workers = min(len(names) * len(seeds), processes)
    with ProcessPoolExecutor(
        workers, context, initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        one = partial(study, folder, training=training, sizes=sizes, equal_seconds=equal_seconds)
        work = {
            name: [pool.submit(one, TARGETS[name], seed=seed) for seed in seeds] for name in names
        }
        return {name: [future.result() for future in futures] for name, futures in work.items()}


def run(options: argparse.Namespace) -> None:
    """Study the targets, print the tables, write the files."""
    training, sizes = QUICK if options.quick else (Training(), Sizes())
    names = list(TARGETS) if options.target == "both" else [options.target]
    if options.points is not None:
        if options.points < training.batch:
            raise UserError(f"--points must be at least one batch, {training.batch}.")
        training = replace(training, points=options.points)
    if options.evaluations is not None:
        sizes = replace(sizes, evaluations=options.evaluations)
    if options.repetitions is not None:
        sizes = replace(sizes, repetitions=options.repetitions)
    if min(options.seeds, options.processes, sizes.repetitions, *sizes.evaluations) < 1:
        raise UserError("--seeds, --processes, --evaluations and --repetitions must be at least 1.")
    seeds, output = range(options.seed, options.seed + options.seeds), options.output
    networks = output / "networks"
    make_folder(networks)
    by_seed = _study_all(
        networks, names, seeds, training, sizes, options.processes, options.equal_seconds
    )
    reports, spreads = {}, {}
    for name, done in by_seed.items():
        each = [one.report for one in done]
        reports[name], spreads[name] = means(each), deviations(each)
        print(table(name, reports[name], spreads[name]), flush=True)
    protocol = {
        "seeds": list(seeds),
        "estimator": "squared MMD, RBF, biased, mean over repetitions; DDIM, or the steps of a "
        "flow map, on a uniform grid",
        "training": asdict(training),
        "sizes": asdict(sizes),
        "models": {name: asdict(model) for name, model in MODELS.items()},
        "targets": {name: repr(TARGETS[name]) for name in names},
    }
    written = {"protocol": protocol, "targets": reports, "deviations": spreads}
    write_json(output / "table.json", written)
    studies = {name: done[0] for name, done in by_seed.items()}  # the pictures show the first seed
    targets = {name: TARGETS[name] for name in names}
    points = {name: done.points for name, done in studies.items()}
    denoisers = {
        name: {model: network.denoise for model, network in done.networks.items()}
        for name, done in studies.items()
    }
    draw_samples(output / "samples.png", points, targets, options.seed)
    draw_posteriors(output / "posterior.png", denoisers, targets, options.seed)
    draw_spread(output / "spread.png", {name: report["spread"] for name, report in reports.items()})
    print(f"Wrote table.json, samples.png, posterior.png and spread.png to {output}.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tool; 0 done, 1 the work failed, 2 the request was wrong."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--target", choices=[*TARGETS, "both"], default="both")
    options.add_argument("--output", type=Path, default=Path("toy2d"), help="default ./toy2d")
    options.add_argument("--points", type=int, help="training points seen by each model")
    options.add_argument("--seed", type=int, default=0, help="the first (default 0)")
    options.add_argument("--seeds", type=int, default=1, help="how many (default 1)")
    options.add_argument("--evaluations", type=list_of(int), help="NFE, such as 1,2,4,8")
    options.add_argument("--repetitions", type=int, help="of each squared MMD, averaged")
    options.add_argument(
        "--processes", type=int, default=os.cpu_count() or 1, help="default: cores"
    )
    equal = "a second table: each model trains for as long as the slowest"
    options.add_argument("--equal-seconds", action="store_true", help=equal)
    options.add_argument("--quick", action="store_true", help="a smoke run of seconds")
    parsed = options.parse_args(arguments)
    return exit_code(lambda: run(parsed))


if __name__ == "__main__":
    raise SystemExit(main())
