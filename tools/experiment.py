"""The experiment on real faces in one command: every stage, DDM beside all that it is held against.

    python tools/experiment.py --images FACES --output experiment [--minutes 10] [--scale 0.01]

An f8 autoencoder, the latents, a DDM (its first phase plain diffusion), plain diffusion (the same
network without xi, as many images), a student distilled from it, then tools/compare.py: all methods
in few evaluations, DDM and DDIM in many. Each stage is a command, which is printed, and goes on
where it stopped; so does the experiment, when its command is run again. With --minutes it stops in
time, everything saved: a long experiment in pieces. Sized for one GPU and 30 minutes; --scale makes
every training longer or shorter.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

from preparation import exit_code
from stages import Stage, run_stages

from latentddm.cli.arguments import find_config
from latentddm.diffusion.sampling import GridKind
from latentddm.engine.config import load_config, to_plain
from latentddm.engine.devices import default_device
from latentddm.engine.errors import UserError
from latentddm.training.config import TrainConfig
from latentddm.training.objective import PlainObjective

SIZE = 128  # pixels
AUTOENCODER_IMAGES = 76_800
PHASE_IMAGES = (1_280_000, 640_000)  # as plain diffusion, then as a DDM; plain diffusion: the sum
STUDENT_IMAGES = 128_000
FEWEST_SEEN = 128  # to which --scale can bring a training
SOLVERS = "ddim,dpmsolver++,sde-dpmsolver++,deis,unipc"
OF_DRAWS = "ddim,dpmsolver++"  # solvers that DDM is tried with
STUDENT_STEPS = 4


def run(options: argparse.Namespace) -> None:
    """All stages, or as many as the time allows; Interrupted if it ended first."""
    if options.scale <= 0:
        raise UserError(f"--scale must be positive, not {options.scale}.")
    run_stages((*training_stages(options), *comparisons(options)), options.minutes)
    print(f"The tables and pictures are in {options.output}/comparison*.")


def training_stages(options: argparse.Namespace) -> list[Stage]:
    """From images to three trained generators."""
    out: Path = options.output
    autoencoder, store, ddm, plain, student = (
        str(out / name) for name in ("autoencoder", "store", "ddm", "plain", "student")
    )
    images, file = options.images, options.perceptual_file
    perceptual = [f"loss.perceptual_file={file}"] if file else []
    on_cuda = default_device().type == "cuda"
    precision = f"precision={'bf16' if on_cuda else 'no'}"  # which CPUs emulate, many times slower
    graphs = f"performance.cuda_graphs={str(on_cuda).lower()}"
    train = ["train", "faces128.yaml", f"store={store}", precision, graphs]
    first, second = (_scaled(count, options.scale) for count in PHASE_IMAGES)
    (phase, *_) = load_config(TrainConfig, find_config("faces128.yaml")).phases
    only = to_plain(replace(phase, images=first + second, objective=PlainObjective()))
    commands = {
        "autoencoder": [
            *("train-autoencoder", "faces128_autoencoder.yaml", f"images={images}"),
            *(f"output={autoencoder}", precision, *perceptual),
            f"loop.images={_scaled(AUTOENCODER_IMAGES, options.scale)}",
        ],
        "latents": [
            *("encode", "--images", images, "--size", str(SIZE), "--flips"),
            *("--autoencoder", f"{autoencoder}/autoencoder", "--output", store),
        ],
        "DDM": [*train, f"output={ddm}", f"phases.0.images={first}", f"phases.1.images={second}"],
        "plain diffusion": [*train, f"output={plain}", f"phases={json.dumps([only])}"],
        "student of plain diffusion": [
            *("distill", "distill.yaml", f"teacher={plain}", f"output={student}"),
            *(f"steps={STUDENT_STEPS}", precision, "loop.batch_size=256"),
            f"loop.images={_scaled(STUDENT_IMAGES, options.scale)}",
            *("optimizer.learning_rate=3e-4", "optimizer.decay=cosine"),
        ],
    }
    latentddm = [sys.executable, "-m", "latentddm"]
    return [Stage(name, [*latentddm, *command]) for name, command in commands.items()]


def _scaled(images: int, scale: float) -> int:
    return max(FEWEST_SEEN, round(scale * images))


def comparisons(options: argparse.Namespace) -> list[Stage]:
    """tools/compare.py in few evaluations over all of them, and in many over DDM and DDIM."""
    out: Path = options.output
    ddm, plain, student = (str(out / name) for name in ("ddm", "plain", "student"))
    few = [f"DDM={ddm}:{OF_DRAWS}", f"plain={plain}:{SOLVERS}", f"student={student}"]
    many = [f"DDM={ddm}", f"plain={plain}"]
    return [
        _comparison("comparison", few, options.evaluations, options),
        _comparison("comparison-many", many, options.many, options),
    ]


def _comparison(
    name: str, methods: Sequence[str], evaluations: str, options: argparse.Namespace
) -> Stage:
    """Methods against reconstructions of the images."""
    distance = "fid,kid" if options.features == "inception" else "frechet"
    command = [
        *(sys.executable, str(Path(__file__).with_name("compare.py"))),
        *(part for method in methods for part in ("--method", method)),
        *("--reference", options.images, "--reconstructed"),
        *("--reference-images", str(options.samples), "--samples", str(options.samples)),
        *("--features", options.features, "--metrics", f"{distance},energy"),
        *("--evaluations", evaluations, "--churn", options.churn, "--safety", options.safety),
        *("--grids", options.grids),
        *("--batch-size", "500", "--output", str(options.output / name)),
    ]
    return Stage(name, command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tool; 0 done, 1 a stage failed, 2 the request was wrong, 143 more is to be done."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--images", required=True, metavar="SRC", help="aligned faces, 128 px or more")
    add("--output", type=Path, default=Path("experiment"), help="default ./experiment")
    add("--minutes", type=float, help="stop after these, everything saved (default: never)")
    add("--scale", type=float, default=1.0, help="of the images seen in training (default 1)")
    add("--samples", type=int, default=3000, help="of each setting, and of the reference")
    add("--evaluations", default="1,2,4,8,10", help="few, of all methods (default 1,2,4,8,10)")
    add("--many", default="50", help="many, of DDM and DDIM (default 50)")
    add("--churn", default="0,1", help="of ddim; a student's is 1 (default 0,1)")
    add("--safety", default="0.02", help="of all (default 0.02)")
    grids = ",".join(get_args(GridKind))
    add("--grids", default=grids, help=f"of all solvers but ddim (default {grids})")
    add("--features", default="inception", help="inception (default: FID and KID) or pyramid-v1")
    add("--perceptual-file", metavar="FILE", help="AlexNet's weights, where nothing downloads")
    parsed = parser.parse_args(arguments)
    return exit_code(lambda: run(parsed))


if __name__ == "__main__":
    raise SystemExit(main())
