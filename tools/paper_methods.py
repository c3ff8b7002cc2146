"""The methods of tools/paper.py: an objective each, the config of every training, the samplers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from compare_plan import Method, Trained, solvers_of

from latentddm.cli.arguments import find_config
from latentddm.demo.sizing import shortened
from latentddm.engine.config import load_config
from latentddm.engine.errors import UserError
from latentddm.engine.task import SinglePhaseConfig
from latentddm.networks.layers import SMOOTH_FREQUENCY
from latentddm.training.config import TrainConfig
from latentddm.training.distillation import DistillConfig
from latentddm.training.objective import Objective, PlainObjective
from latentddm.training.phases import Phase
from latentddm.training.rivals import InductiveObjective, MeanFlowObjective, ShortcutObjective

PLAIN, DDM, STUDENT = "plain", "DDM", "student"
RIVALS: Mapping[str, tuple[type[Objective], Sequence[str]]] = {  # settings: over the defaults
    "shortcut": (ShortcutObjective, ()),
    "mean-flow": (MeanFlowObjective, ("improved=true", "velocity_share=0.5")),
    "inductive": (InductiveObjective, ()),
}
# By the first word of a method's name: the samplers, each with the grids of the sweep unless it
# names one. The others have one sampler.
SOLVERS = {
    PLAIN: "ddim,dpmsolver++,sde-dpmsolver++,unipc",
    DDM: "ddim,ddim/power,dpmsolver++,unipc",
}


def kind_of(name: str) -> str:
    """The first word of a method's name: DDM of DDM-of-2, which has two draws."""
    return name.split("-of-")[0]


def methods(
    config: TrainConfig, draws: Sequence[int] = (), settings: Sequence[str] = ()
) -> dict[str, Objective]:
    """The objective of each method's second share, by name.

    UserError unless the phases are plain and ddm, and for a config with `start`.
    draws: a DDM for each number of them, in the place of the config's. settings: NAME.key=value of
    the rivals.
    """
    if [phase.objective.kind for phase in config.phases] != ["plain", "ddm"]:
        raise UserError(
            "phases must be two, of kind plain and ddm, from which every method has its share of "
            "images and its optimizer; change them."
        )
    if config.start is not None:
        raise UserError(
            f"start is {config.start}, but a rival's network, which reads the end of a step, "
            "cannot begin with that run's weights; leave it out."
        )
    own = config.phases[1].objective
    return {PLAIN: PlainObjective(), **_ablation(own, draws), **_rivals(settings)}


def _ablation(own: Objective, draws: Sequence[int]) -> dict[str, Objective]:
    """The DDM, or one for each number of draws."""
    try:
        varied = {f"{DDM}-of-{m}": replace(own, draws=m) for m in draws}  # type: ignore[call-arg]
    except ValueError as error:
        raise UserError(
            f"--draws {','.join(map(str, draws))}: {error}; leave it out, or add "
            "phases.1.objective.antithetic=false."
        ) from None
    return varied or {DDM: own}


def _rivals(settings: Sequence[str]) -> dict[str, Objective]:
    """The rivals with their settings over those of RIVALS; UserError for an unknown one."""
    given: dict[str, list[str]] = {name: [] for name in RIVALS}
    for setting in settings:
        name, _, value = setting.partition(".")
        if name not in given or "=" not in value:
            raise UserError(
                f"--rivals {setting}: write NAME.key=value, with NAME one of {', '.join(RIVALS)}."
            )
        given[name].append(value)
    return {
        name: load_config(kind, None, [*own, *given[name]]) for name, (kind, own) in RIVALS.items()
    }


def rows(
    objectives: Mapping[str, Objective], steps: Sequence[int], classes: int, runs: int
) -> list[Method]:
    """The rows of the comparison before there is a run: what its size follows from."""
    planned: list[Method] = []
    for name in (*objectives, *map(student_name, steps)):
        objective = objectives.get(name, PlainObjective())
        learnt = getattr(objective, "flow_map", None)
        one = Trained(
            run="", weights="", reads_xi=objective.draw_count > 0, flow_map=learnt, classes=classes
        )
        planned += [
            Method(name, 0, solver, (one,) * runs, grid, named)
            for solver, grid, named in solvers_of(name, SOLVERS.get(kind_of(name), ""))
        ]
    return planned


def method_config(
    config: TrainConfig, objective: Objective, images: int, output: Path
) -> TrainConfig:
    """The training of one method: `images` in the shares of the config's two phases.

    Every row launches its kernels one by one: a network of two times and a student can have neither
    CUDA graphs nor, as far as is tested, compiled passes, and seconds are to be comparable.
    """
    (mean, own), batch = config.phases, config.loop.batch_size
    first = round(images * mean.images / (mean.images + own.images) / batch) * batch
    first = min(max(first, batch), images - batch)
    phases: tuple[Phase, ...] = (shortened(mean, images),)
    if not isinstance(objective, PlainObjective):
        own = replace(own, objective=objective)
        phases = (shortened(mean, first), shortened(own, images - first))
    network = replace(
        config.network,
        times=2 if objective.learns_flow_map else 1,
        time_frequency=SMOOTH_FREQUENCY if objective.derivatives else config.network.time_frequency,
    )
    performance = replace(config.performance, cuda_graphs=False, compile=False)
    return replace(
        config,
        network=network,
        performance=performance,
        phases=phases,
        output=str(output),
    )


def second_share(config: TrainConfig, images: int) -> int:
    """The images of the second of the two shares of `images`."""
    return method_config(config, config.phases[1].objective, images, Path()).phases[1].images


def student_name(steps: int) -> str:
    return f"{STUDENT}-of-{steps}"


def student_config(
    config: TrainConfig,
    steps: int,
    images: int,
    teacher: tuple[Path, int],
    output: Path,
    options: Sequence[str] = (),
) -> DistillConfig:
    """The training of a student of `steps` on `images`.

    Its optimizer is that of configs/distill.yaml: a distillation starts from trained weights.
    teacher: its run and the images it has seen; options: key=value, over that file.
    """
    unknown = [option for option in options if not option.startswith("optimizer.")]
    if unknown:
        raise UserError(
            f"--distill {unknown[0]} is no setting of the optimizer, and all else is the config's; "
            "give optimizer.KEY=VALUE."
        )
    base = load_config(DistillConfig, find_config("distill.yaml"), options)
    warmup = min(base.optimizer.warmup_images, images // 10)
    return replace(
        base,
        teacher=str(teacher[0]),
        teacher_images=teacher[1],
        output=str(output),
        steps=steps,
        seed=config.seed,
        optimizer=replace(base.optimizer, warmup_images=warmup),
        loop=SinglePhaseConfig(images=images, **vars(config.loop)),
        ema=config.ema,
        precision=config.precision,
    )
